#!/bin/sh
# kubeadm's certificates live a year. When they are eight months old: renew them, and make the control plane of this
# master read them by taking the manifests of its static pods away for a moment (kubernetes.io, "Certificate Management
# with kubeadm"). The timer spreads this, so that several masters hardly do it at once.
set -eu
PATH=/opt/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MANIFESTS=/etc/kubernetes/manifests AWAY=/etc/kubernetes/renewing
mkdir -p "$AWAY"
# Also brings back what a run left behind that was cut short.
trap 'find "$AWAY" -name "*.yaml" -exec mv {} "$MANIFESTS/" \;' EXIT
[ -n "$(find /etc/kubernetes/pki/apiserver.crt -mtime +240)" ] || exit 0
kubeadm certs renew all
find "$MANIFESTS" -name '*.yaml' -exec mv {} "$AWAY/" \;
sleep 40
