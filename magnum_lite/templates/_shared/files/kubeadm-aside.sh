#!/bin/sh
# A master whose Node is deleted makes room for another one: it stops its API, so that the load balancer leads everybody
# to the others, and waits to be taken out of etcd and to be deleted. If that does not happen, it comes back.
set -eu
PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MANIFESTS=/etc/kubernetes/manifests AWAY=/etc/kubernetes/aside
. /etc/magnum-lite/node.env

api() { kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout "$@"; }

# Nobody knows this Node, and the API says so itself.
is_deleted() { seen=$(api 20s get node "$NODE_NAME" --ignore-not-found -o name) && [ -z "$seen" ]; }

# What a run left behind that was cut short.
[ ! -d "$AWAY" ] || find "$AWAY" -name '*.yaml' -exec mv {} "$MANIFESTS/" \;
until is_deleted; do
    api 1h wait --for=delete "node/$NODE_NAME" --timeout 1h || sleep 10
done
echo "the Node $NODE_NAME is deleted: this master steps aside"
mkdir -p "$AWAY"
mv "$MANIFESTS/kube-apiserver.yaml" "$MANIFESTS/kube-controller-manager.yaml" "$MANIFESTS/kube-scheduler.yaml" "$AWAY/"
sleep 300
# etcd ends when it is taken out.
for _ in 1 2 3; do
    pgrep -x etcd >/dev/null || exit 0
    sleep 10
done
echo 'nobody has taken the place of this master: it comes back'
mv "$AWAY"/*.yaml "$MANIFESTS/"
systemctl restart kubelet
until seen=$(api 20s get node "$NODE_NAME" -o name) && [ -n "$seen" ]; do sleep 10; done
exit 1
