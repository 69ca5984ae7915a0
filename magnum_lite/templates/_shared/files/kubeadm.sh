# shellcheck shell=sh
# The steps that make a node of Kubernetes with kubeadm. node.sh reads this file and calls `set_up_node`.
#
# A master joins if the API of its cluster answers; if not, the one that carries NODE_BEGINS begins the cluster, and the
# others wait. A replaced first master therefore joins. Nothing here holds a token: nodes find the cluster by a client
# certificate in discovery.conf, which expires.

# shellcheck disable=SC2034  # node.sh says it
INSTEAD='name the label kube_tarball_url (also for conntrack), containerd_tarball_url or cni_tarball_url'
PKI=/etc/kubernetes/pki ADMIN=/etc/kubernetes/admin.conf DISCOVERY=/etc/kubernetes/discovery.conf

set_up_node() {
    step 'prepare the kernel'
    prepare_kernel
    step 'mount volumes'
    if [ -n "$DOCKER_VOLUME" ]; then
        systemctl stop containerd || true
        mount_volume "$DOCKER_VOLUME" /var/lib/containerd
    fi
    [ -z "$ETCD_VOLUME" ] || mount_volume "$ETCD_VOLUME" /var/lib/etcd
    step 'install kubeadm'
    install_kubeadm
    step 'install programs'
    install_programs
    step 'start containerd'
    start_containerd
    if [ "$NODE_ROLE" = master ]; then
        set_up_master
    else
        step 'wait for the cluster'
        until_ok joinable
        step 'join the cluster'
        join
    fi
    step 'wait for the node to be ready'
    until_ok node_ready
    if [ -n "$CLOUD_MANIFESTS" ]; then
        step 'wait for the cloud controller manager'
        until_ok node_initialized
    fi
    if [ "$NODE_ROLE" = master ]; then
        systemctl enable --now magnum-lite-aside.service
        [ -z "$NODE_REPLACES" ] || take_over "$NODE_REPLACES"
    fi
    rm -rf "$DISCOVERY" /etc/magnum-lite/pki /etc/magnum-lite/cloud.yaml
}

set_up_master() {
    systemctl enable --now magnum-lite-guard.service magnum-lite-renew.timer
    if api_answers || [ -z "$NODE_BEGINS" ]; then
        step 'wait for the cluster'
        until_ok joinable
        step 'join the cluster'
        retry 6 join
    else
        step 'begin the cluster'
        lay_out_keys
        kubeadm init --config /etc/magnum-lite/init.yaml --skip-token-print
        # Nobody knows the token that kubeadm made, and nobody needs it.
        kubectl --kubeconfig "$ADMIN" -n kube-system delete secrets \
            --field-selector type=bootstrap.kubernetes.io/token
        step 'apply the pod network'
        retry 5 kubectl --kubeconfig "$ADMIN" apply -f "$NETWORK_MANIFEST" -f /opt/magnum-lite/access.yaml
        if [ -n "$CLOUD_MANIFESTS" ]; then
            step 'apply the cloud integration'
            retry 5 apply_cloud
        fi
        if [ -n "$POST_INSTALL_MANIFEST" ]; then
            step 'apply the manifest of post_install_manifest_url'
            retry 5 kubectl --kubeconfig "$ADMIN" apply -f "$POST_INSTALL_MANIFEST"
        fi
    fi
    step 'wait for the API of this master'
    until_ok kubectl --kubeconfig "$ADMIN" --server "$NODE_API_URL" --request-timeout 10s get --raw /readyz
}

# What acts on the cloud from inside the cluster, and what it logs in with. (--server-side, so that the Secret does not
# hold it twice.)
apply_cloud() {
    kubectl --kubeconfig "$ADMIN" apply --server-side --force-conflicts -f /etc/magnum-lite/cloud.yaml || return 1
    for manifest in $CLOUD_MANIFESTS; do
        kubectl --kubeconfig "$ADMIN" apply -f "$manifest" || return 1
    done
}

prepare_kernel() {
    printf 'overlay\nbr_netfilter\n' >/etc/modules-load.d/magnum-lite.conf
    modprobe -a overlay br_netfilter
    cat >/etc/sysctl.d/90-magnum-lite.conf <<'END'
net.bridge.bridge-nf-call-iptables = 1
net.bridge.bridge-nf-call-ip6tables = 1
net.ipv4.ip_forward = 1
END
    sysctl -q -p /etc/sysctl.d/90-magnum-lite.conf
    swapoff -a
    [ ! -e /etc/fstab ] || sed -i '/^[^#].*[[:space:]]swap[[:space:]]/s/^/#/' /etc/fstab
    # Where a cluster begins decides which file every kubelet reads, and kubeadm takes that of systemd-resolved if it runs.
    if ! systemctl -q is-active systemd-resolved; then
        echo 'L /run/systemd/resolve/resolv.conf - - - - /etc/resolv.conf' >/etc/tmpfiles.d/magnum-lite.conf
        systemd-tmpfiles --create /etc/tmpfiles.d/magnum-lite.conf
    fi
    if [ "$SELINUX_MODE" = permissive ] && have getenforce && [ "$(getenforce)" = Enforcing ]; then
        setenforce 0
        sed -i 's/^SELINUX=.*/SELINUX=permissive/' /etc/selinux/config
    fi
}

# Programs that kubeadm and the network ask for, and the package of each. kubeadm only warns of the optional ones.
install_programs() {
    missing='' conntrack=conntrack plugins=containernetworking-plugins optional='socat:socat ethtool:ethtool'
    if have zypper; then
        conntrack=conntrack-tools plugins=cni-plugins
    elif ! have apt-get; then
        optional=
    fi
    for pair in conntrack:$conntrack iptables:iptables ip:iproute2 tar:tar $optional; do
        have "${pair%:*}" || missing="$missing ${pair#*:}"
    done
    [ -z "$CONTAINERD_TARBALL_URL" ] || unpack_containerd
    for program in runc containerd; do
        have "$program" || missing="$missing $program"
    done
    mkdir -p /opt/cni/bin
    if [ -n "$CNI_TARBALL_URL" ]; then
        fetch "$CNI_TARBALL_URL" "$CNI_TARBALL_SHA256" "$STATE/cni.tgz"
        tar -xzf "$STATE/cni.tgz" -C /opt/cni/bin
        rm "$STATE/cni.tgz"
    elif [ ! -x /opt/cni/bin/bridge ] && [ ! -x /usr/lib/cni/bridge ] && [ ! -x /usr/libexec/cni/bridge ]; then
        missing="$missing $plugins"
    fi
    # shellcheck disable=SC2086  # it is a list of names
    [ -z "$missing" ] || packages $missing
    for folder in /usr/libexec/cni /usr/lib/cni; do
        if [ ! -x /opt/cni/bin/bridge ] && [ -x "$folder/bridge" ]; then ln -sf "$folder"/* /opt/cni/bin/; fi
    done
}

unpack_containerd() {
    fetch "$CONTAINERD_TARBALL_URL" "$CONTAINERD_TARBALL_SHA256" "$STATE/containerd.tgz"
    where=/
    ! tar -tzf "$STATE/containerd.tgz" | grep '^\(\./\)\{0,1\}bin/containerd$' >/dev/null || where=${BIN%/bin}
    tar -xzf "$STATE/containerd.tgz" -C "$where"
    rm "$STATE/containerd.tgz"
    systemctl cat containerd >/dev/null 2>&1 || cat >/etc/systemd/system/containerd.service <<END
[Unit]
Description=containerd
After=network.target local-fs.target

[Service]
ExecStart=$(command -v containerd)
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNOFILE=1048576
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
END
}

install_kubeadm() {
    if ! have kubeadm || ! have kubelet || [ "$(kubeadm version -o short)" != "$KUBE_TAG" ]; then
        [ -n "$KUBE_TARBALL_URL" ] || fail "the image has kubeadm $(kubeadm version -o short 2>/dev/null || echo none)," \
            "wanted is $KUBE_TAG; use an image that has it, or name the label kube_tarball_url"
        have tar || packages tar
        fetch "$KUBE_TARBALL_URL" "$KUBE_TARBALL_SHA256" "$STATE/kube.tgz"
        mkdir -p "$STATE/kube" "$BIN"
        tar -xzf "$STATE/kube.tgz" -C "$STATE/kube"
        find "$STATE/kube" -type f \( -name kubeadm -o -name kubelet -o -name kubectl -o -name crictl \
            -o -name conntrack -o -name ethtool -o -name socat \) -exec install -m 755 -t "$BIN" {} +
        hash -r
        rm -r "$STATE/kube.tgz" "$STATE/kube"
        kubelet_unit
    elif ! systemctl cat kubelet >/dev/null 2>&1; then
        kubelet_unit
    fi
}

start_containerd() {
    # The pause image that this kubeadm wants, under its own name even where a registry of the operator is used.
    pause=$(kubeadm config images list --kubernetes-version "$KUBE_TAG" \
        ${IMAGE_REPOSITORY:+--image-repository "$IMAGE_REPOSITORY"} 2>/dev/null | grep '/pause:')
    mkdir -p /etc/containerd/certs.d
    [ ! -e /etc/magnum-lite/registry-ca.b64 ] ||
        base64 -d /etc/magnum-lite/registry-ca.b64 >/etc/containerd/registry-ca.pem
    cat >/etc/containerd/config.toml <<END
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
END
    mkdir -p /etc/systemd/system/containerd.service.d
    # The unit of an image may start another containerd than the one that was brought, or with a file of its own.
    cat >/etc/systemd/system/containerd.service.d/10-magnum-lite.conf <<END
[Service]
Environment=PATH=$PATH
ExecStart=
ExecStart=$(command -v containerd) --config /etc/containerd/config.toml
END
    systemctl daemon-reload
    systemctl enable containerd kubelet
    systemctl restart containerd
}

# The unit and drop-in that kubeadm counts on (kubernetes.io, "Configuring each kubelet in your cluster using kubeadm").
kubelet_unit() {
    mkdir -p /etc/systemd/system/kubelet.service.d
    cat >/etc/systemd/system/kubelet.service <<END
[Unit]
Description=kubelet
Wants=network-online.target
After=network-online.target containerd.service

[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=$(command -v kubelet) \$KUBELET_KUBECONFIG_ARGS \$KUBELET_CONFIG_ARGS \$KUBELET_KUBEADM_ARGS
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
END
}

# kubeadm reset takes the keys away, so that they lie elsewhere and are laid out before each try.
lay_out_keys() {
    mkdir -p "$PKI" &&
        cp -a /etc/magnum-lite/pki/. "$PKI/"
}

api_answers() { kubectl --kubeconfig "$DISCOVERY" --request-timeout 5s get --raw /readyz; }

# kubeadm join does not wait for kubeadm init to be through; what init makes last is this ConfigMap.
joinable() { kubectl --kubeconfig "$DISCOVERY" --request-timeout 5s -n kube-system get configmap kube-proxy -o name; }

join() {
    if [ "$NODE_ROLE" = master ]; then
        lay_out_keys || return 1
        [ -z "$NODE_REPLACES" ] || make_room || return 1
    fi
    if ! kubeadm_join || ! trust_all; then
        kubeadm reset --force || true
        return 1
    fi
}

# While authorities are exchanged other masters may have certificates of another one than this. kubeadm writes only the
# first certificate of ca.crt into admin.conf, and goes on with that file: so it is stopped between the two.
kubeadm_join() {
    set -- --config /etc/magnum-lite/join.yaml
    if [ "$NODE_ROLE" = master ] && [ "$(grep -c BEGIN "$PKI/ca.crt")" -gt 1 ]; then
        kubeadm join phase preflight "$@" && kubeadm join phase control-plane-prepare all "$@" && trust_all || return 1
        set -- "$@" --skip-phases preflight,control-plane-prepare
    fi
    kubeadm join "$@"
}

# Have everything that kubeadm wrote trust all of ca.crt.
trust_all() {
    [ -e "$PKI/ca.crt" ] && [ "$(grep -c BEGIN "$PKI/ca.crt")" -gt 1 ] || return 0
    for conf in admin super-admin controller-manager scheduler kubelet; do
        conf=/etc/kubernetes/$conf.conf
        [ -e "$conf" ] || continue
        name=$(kubectl config --kubeconfig "$conf" view -o 'jsonpath={.clusters[0].name}') &&
            kubectl config --kubeconfig "$conf" set-cluster "$name" --embed-certs \
                --certificate-authority "$PKI/ca.crt" || return 1
    done
}

# -- Masters that are replaced, one at a time: the new one joins, then takes the old one (NODE_REPLACES) out of the
# cluster, and then reports. NODE_STAYS are those that are there and stay.

admin() { kubectl --kubeconfig "$ADMIN" --request-timeout 20s "$@"; }

# etcd MASTER COMMAND...: etcdctl in the container of a master's etcd. ENDPOINT: ask another one than that.
etcd() {
    pod=etcd-$1
    shift
    timeout 40 kubectl --kubeconfig "$ADMIN" -n kube-system exec "$pod" -- etcdctl \
        --endpoints "${ENDPOINT:-https://127.0.0.1:2379}" --cacert "$PKI/etcd/ca.crt" \
        --cert "$PKI/etcd/server.crt" --key "$PKI/etcd/server.key" "$@"
}

# Before it joins: kubeadm refuses while a member of etcd does not answer, such as one that was made half, or whose
# server is gone. And what kubeadm reads of the cluster is what this master's release of it knows.
make_room() {
    kubeadm init phase kubeconfig admin --config /etc/magnum-lite/init.yaml && trust_all || return 1
    asked=
    for name in $NODE_STAYS $NODE_REPLACES; do
        if etcd "$name" endpoint health; then
            asked=$name
            break
        fi
    done
    [ -n "$asked" ] && found=$(etcd "$asked" member list) || return 1
    echo "$found"
    printf '%s\n' "$found" | while IFS=', ' read -r id status name _ client _; do
        case " $NODE_STAYS " in *" ${name:--} "*) continue ;; esac
        if [ "$status" = started ] && ENDPOINT=$client etcd "$asked" endpoint health; then continue; fi
        etcd "$asked" member remove "$id" || exit 1
    done || return 1
    kubeadm init phase upload-config kubeadm --config /etc/magnum-lite/init.yaml && rm "$ADMIN"
}

# take_over MASTER: in this order the API always answers, and until the last step nothing is lost if this master fails.
# That step is only taken when the load balancer leads here and a report would arrive: else the stack would delete this
# master for not having reported, and the cluster with it.
take_over() {
    step "drain $1"
    timeout 90 kubectl --kubeconfig "$ADMIN" drain "$1" --ignore-daemonsets --delete-emptydir-data --force \
        --timeout 60s || true
    if [ -n "$NODE_REPLACES_LAST" ]; then
        step 'update the addons'
        retry 4 update_addons
    fi
    step 'see whether the stack listens'
    until_ok stack_listens
    step "have $1 step aside"
    retry 4 admin delete node "$1" --ignore-not-found --wait=false
    tries=30
    while [ "$tries" -gt 0 ] && serves "$1"; do
        tries=$((tries - 1))
        sleep 2
    done
    retry 6 api_answers
    step "take $1 out of etcd"
    trap '' TERM
    until_ok leave_etcd "$1"
}

update_addons() {
    image=$(admin -n kube-system get daemonset kube-proxy -o 'jsonpath={.spec.template.spec.containers[0].image}') ||
        return 1
    case $image in
    *":$KUBE_TAG") ;;
    *) kubeadm init phase addon all --config /etc/magnum-lite/init.yaml || return 1 ;;
    esac
    [ -z "$CLOUD_MANIFESTS" ] || apply_cloud
}

# Any answer will do: it is asked with a method that the address does not know.
stack_listens() {
    if have curl; then
        curl -sS --max-time 30 -o /dev/null "$SIGNAL_URL"
    else
        wget -q -T 30 -O /dev/null "$SIGNAL_URL" || [ $? = 8 ]
    fi
}

# serves MASTER: whether the API of a member of etcd answers.
serves() {
    client=$(etcd "$NODE_NAME" member list | awk -F', ' -v name="$1" '$3 == name { print $5 }')
    [ -n "$client" ] && admin --server "${client%:*}:${NODE_API_URL##*:}" get --raw /readyz >/dev/null 2>&1
}

leave_etcd() {
    found=$(etcd "$NODE_NAME" member list) || return 1
    printf '%s\n' "$found" | grep -q ", started, $NODE_NAME," || return 1
    for id in $(printf '%s\n' "$found" | awk -F', ' -v name="$1" '$3 == name { print $1 }'); do
        etcd "$NODE_NAME" member remove "$id" || return 1
    done
}

# A master that has joined and failed must not go with a vote in etcd: two members of which one is gone decide nothing.
give_up() {
    if [ "$NODE_ROLE" = master ] && [ -z "$NODE_BEGINS" ] && [ -e /etc/kubernetes/manifests/etcd.yaml ]; then
        timeout 60 kubeadm reset --force
    fi
}

node_ready() {
    kubectl --kubeconfig /etc/kubernetes/kubelet.conf --request-timeout 10s get node "$NODE_NAME" \
        -o 'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}' >"$STATE/ready" || return 1
    cat "$STATE/ready"
    grep -q '^True' "$STATE/ready"
}

# With kubelet --cloud-provider=external a node takes no pods before the cloud controller manager has looked at it.
node_initialized() {
    taints=$(kubectl --kubeconfig /etc/kubernetes/kubelet.conf --request-timeout 10s get node "$NODE_NAME" \
        -o 'jsonpath={.spec.taints[*].key}') || return 1
    case $taints in
    *node.cloudprovider.kubernetes.io/uninitialized*)
        echo 'the cloud controller manager has not looked at this node: can masters reach Keystone, and its image?'
        return 1
        ;;
    esac
}
