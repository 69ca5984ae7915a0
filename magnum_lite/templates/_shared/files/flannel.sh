# shellcheck shell=sh
# flannel without Kubernetes: etcd on the masters keeps who has which addresses, and flanneld on nodes with Docker takes a
# range there, which Docker gives to containers of its own bridge. An engine's script reads this file.
#
# The backend and the ranges stay what they were at first. etcd can be reached by nodes of the cluster only. Where there is
# an authority (ca.crt in FLANNEL_TLS) it takes only clients with a certificate, client.crt, of that in join-ca.crt, and
# members have the certificate that Docker has, server.crt.

MASTERS=$(echo "$MASTER_ADDRESSES" | tr , ' ')
FLANNEL_ENV=/run/flannel/subnet.env FLANNEL_TLS=/etc/magnum-lite/flannel ETCD=/var/lib/etcd DOCKER_TLS=/etc/docker/tls
SCHEME=http
[ ! -e "$FLANNEL_TLS/ca.crt" ] || SCHEME=https

set_up_etcd() {
    step 'install etcd'
    install_etcd
    step 'start etcd'
    start_etcd
}

set_up_flannel() {
    step 'install flannel'
    install_flannel
    step 'start flannel'
    start_flannel
}

# take_programs URL SHA256 NAME...: from a tar.gz that holds them in any folder.
take_programs() {
    fetch "$1" "$2" "$STATE/programs.tgz"
    mkdir -p "$STATE/programs" "${BIN:=/usr/local/bin}"
    tar -xzf "$STATE/programs.tgz" -C "$STATE/programs"
    shift 2
    for name; do
        find "$STATE/programs" -type f -name "$name" -exec install -m 755 -t "$BIN" {} +
    done
    rm -r "$STATE/programs.tgz" "$STATE/programs"
}

install_etcd() {
    if [ -n "$ETCD_TARBALL_URL" ]; then
        take_programs "$ETCD_TARBALL_URL" "$ETCD_TARBALL_SHA256" etcd etcdctl
    elif ! have etcd || ! have etcdctl; then
        if have zypper; then packages etcd etcdctl; else packages etcd-server etcd-client; fi
    fi
    systemctl stop etcd.service 2>/dev/null || true
}

install_flannel() {
    [ -z "$FLANNEL_TARBALL_URL" ] || take_programs "$FLANNEL_TARBALL_URL" "$FLANNEL_TARBALL_SHA256" flanneld
    have flanneld || fail 'the image lacks flanneld, and no distribution has it; use an image that has it, or name the' \
        'label flannel_tarball_url, or make the cluster template with another network_driver'
}

# etcd_urls NAMED PORT: the URLs of all members with commas between, each behind its name if NAMED is not empty.
etcd_urls() {
    list=
    for address in $MASTERS; do
        list="${list:+$list,}${1:+$address=}$SCHEME://$address:$2"
    done
    echo "$list"
}

start_etcd() {
    id -u etcd >/dev/null 2>&1 || useradd --system --home-dir "$ETCD" --shell /usr/sbin/nologin etcd
    mkdir -p "$ETCD"
    set -- --name "$NODE_ADDRESS" --data-dir "$ETCD/flannel" \
        --listen-client-urls "$SCHEME://$NODE_ADDRESS:2379" --advertise-client-urls "$SCHEME://$NODE_ADDRESS:2379" \
        --listen-peer-urls "$SCHEME://$NODE_ADDRESS:2380" --initial-advertise-peer-urls "$SCHEME://$NODE_ADDRESS:2380" \
        --initial-cluster "$(etcd_urls named 2380)" --initial-cluster-token flannel --initial-cluster-state new
    if [ "$SCHEME" = https ]; then
        cp "$DOCKER_TLS/ca.crt" "$DOCKER_TLS/join-ca.crt" "$DOCKER_TLS/server.crt" "$DOCKER_TLS/server.key" "$ETCD/"
        set -- "$@" --cert-file "$ETCD/server.crt" --key-file "$ETCD/server.key" --client-cert-auth \
            --trusted-ca-file "$ETCD/join-ca.crt" --enable-grpc-gateway=false --peer-client-cert-auth \
            --peer-cert-file "$ETCD/server.crt" --peer-key-file "$ETCD/server.key" --peer-trusted-ca-file "$ETCD/ca.crt"
    fi
    chown -R etcd: "$ETCD"
    chmod 700 "$ETCD"
    run_service etcd User=etcd "$(command -v etcd)" "$@"
    until_ok ask_etcd put /coreos.com/network/config "$FLANNEL_CONFIG"
}

# ask_etcd COMMAND...: with version 3 of the API, which releases before 3.4 do not take by themselves.
ask_etcd() {
    if [ "$SCHEME" = https ]; then
        set -- --cacert "$FLANNEL_TLS/ca.crt" --cert "$FLANNEL_TLS/client.crt" --key "$FLANNEL_TLS/client.key" "$@"
    fi
    ETCDCTL_API=3 timeout 20 etcdctl --endpoints "$(etcd_urls '' 2379)" "$@"
}

# flanneld writes the range that it took, and Docker waits for that at every boot. Docker would hide the addresses of
# containers behind the node's, and does not forward for others.
start_flannel() {
    set -- "--etcd-endpoints=$(etcd_urls '' 2379)" --etcd-prefix=/coreos.com/network "--iface=$NODE_ADDRESS" --ip-masq \
        "--subnet-file=$FLANNEL_ENV"
    if [ "$SCHEME" = https ]; then
        set -- "$@" "--etcd-cafile=$FLANNEL_TLS/ca.crt" "--etcd-certfile=$FLANNEL_TLS/client.crt" \
            "--etcd-keyfile=$FLANNEL_TLS/client.key"
    fi
    run_service flanneld '' "$(command -v flanneld)" "$@"
    until_ok has_range
    # shellcheck disable=SC1090  # it is made on the node
    . "$FLANNEL_ENV"
    mkdir -p /etc/systemd/system/docker.service.d
    cat >/etc/systemd/system/docker.service.d/50-flannel.conf <<END
[Unit]
Wants=flanneld.service
After=flanneld.service

[Service]
ExecStartPre=/bin/sh -c 'until [ -s $FLANNEL_ENV ]; do sleep 1; done'
ExecStart=
ExecStart=/bin/sh -c '. $FLANNEL_ENV; exec $(command -v dockerd) --bip=\$\$FLANNEL_SUBNET --mtu=\$\$FLANNEL_MTU --ip-masq=false'
ExecStartPost=/bin/sh -c 'for way in -s -d; do iptables -w -C DOCKER-USER \$\$way $FLANNEL_NETWORK -j ACCEPT || iptables -w -I DOCKER-USER \$\$way $FLANNEL_NETWORK -j ACCEPT; done'
END
}

has_range() {
    if [ ! -s "$FLANNEL_ENV" ]; then
        journalctl -u flanneld.service -n 3 -o cat --no-pager
        return 1
    fi
}
