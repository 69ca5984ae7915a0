# shellcheck shell=sh
# flannel without Kubernetes: etcd on the masters keeps who has which addresses, and flanneld on nodes with Docker takes a
# range there, which Docker gives to containers of its own bridge. An engine's script reads this file.
#
# The backend and the ranges stay what they were at first. etcd can be reached by nodes of the cluster only.

MASTERS=$(echo "$MASTER_ADDRESSES" | tr , ' ')
FLANNEL_ENV=/run/flannel/subnet.env

# take_programs URL SHA256 NAME...: from a tar.gz that holds them in any folder.
take_programs() {
    fetch "$1" "$2" "$STATE/programs.tgz"
    mkdir -p "$STATE/programs"
    tar -xzf "$STATE/programs.tgz" -C "$STATE/programs"
    shift 2
    for name; do
        find "$STATE/programs" -type f -name "$name" -exec install -m 755 -t /usr/local/bin {} +
    done
    rm -r "$STATE/programs.tgz" "$STATE/programs"
}

install_etcd() {
    if [ -n "$ETCD_TARBALL_URL" ]; then
        take_programs "$ETCD_TARBALL_URL" "$ETCD_TARBALL_SHA256" etcd etcdctl
    elif ! have etcd || ! have etcdctl; then
        packages etcd-server etcd-client
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
        list="${list:+$list,}${1:+$address=}http://$address:$2"
    done
    echo "$list"
}

start_etcd() {
    id -u etcd >/dev/null 2>&1 || useradd --system --home-dir /var/lib/etcd --shell /usr/sbin/nologin etcd
    mkdir -p /var/lib/etcd
    chown etcd: /var/lib/etcd
    chmod 700 /var/lib/etcd
    run_service etcd User=etcd "$(command -v etcd)" --name "$NODE_ADDRESS" --data-dir /var/lib/etcd/flannel \
        --listen-client-urls "http://$NODE_ADDRESS:2379" --advertise-client-urls "http://$NODE_ADDRESS:2379" \
        --listen-peer-urls "http://$NODE_ADDRESS:2380" --initial-advertise-peer-urls "http://$NODE_ADDRESS:2380" \
        --initial-cluster "$(etcd_urls named 2380)" --initial-cluster-token flannel --initial-cluster-state new
    until_ok ask_etcd put /coreos.com/network/config "$FLANNEL_CONFIG"
}

# ask_etcd COMMAND...: with version 3 of the API, which releases before 3.4 do not take by themselves.
ask_etcd() {
    ETCDCTL_API=3 timeout 20 etcdctl --endpoints "$(etcd_urls '' 2379)" "$@"
}

# flanneld writes the range that it took, and Docker waits for that at every boot. Docker would hide the addresses of
# containers behind the node's, and does not forward for others.
start_flannel() {
    run_service flanneld '' "$(command -v flanneld)" "--etcd-endpoints=$(etcd_urls '' 2379)" \
        --etcd-prefix=/coreos.com/network "--iface=$NODE_ADDRESS" --ip-masq "--subnet-file=$FLANNEL_ENV"
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
