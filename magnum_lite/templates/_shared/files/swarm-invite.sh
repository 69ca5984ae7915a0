#!/bin/sh
# Tell whoever presents a certificate of the authority for joining how to join as a worker: the token, and the addresses of
# the managers. Such a certificate, by the name of node-join, is good for nothing else, and the token makes nobody a manager.
set -eu
export HOME=/root PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ "${1:-}" = --answer ]; then
    token=$(docker swarm join-token -q worker)
    exec docker info --format "$token{{range .Swarm.RemoteManagers}} {{.Addr}}{{end}}"
fi
. /etc/magnum-lite/node.env
TLS=/etc/docker/tls
exec socat -T 30 "OPENSSL-LISTEN:$JOIN_PORT,pf=ip4,reuseaddr,fork,max-children=50,cert=$TLS/server.crt,key=$TLS/server.key,cafile=$TLS/join-ca.crt,verify=1,commonname=node-join" \
    EXEC:"/bin/sh $0 --answer"
