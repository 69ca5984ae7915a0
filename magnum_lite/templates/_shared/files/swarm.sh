# shellcheck shell=sh
# The steps that make a node of a Docker swarm. node.sh reads this file and calls `set_up_node`.
#
# A manager joins if the swarm answers; if not, the one that carries NODE_BEGINS begins it, and the others wait. A replaced
# first manager therefore joins. No token to join with travels through the stack: managers ask the Docker API of another
# one, with a certificate that they sign themselves, as they hold the key of the authority; workers ask swarm-invite.sh on
# a manager, with a certificate of another authority that soon expires, and that is good for nothing else.

. /opt/magnum-lite/docker.sh

TLS=/etc/docker/tls PKI=/etc/magnum-lite/pki INVITATION=/etc/magnum-lite/pki/invitation

set_up_node() {
    # Containers get to know a node by its name, and so does the service.
    [ "$(uname -n)" = "$NODE_NAME" ] || hostnamectl set-hostname "$NODE_NAME"
    step 'install docker'
    # shellcheck disable=SC2046  # it is a list of programs
    install_docker openssl:openssl $([ "$NODE_ROLE" != master ] || echo socat:socat)
    if [ -n "$DOCKER_VOLUME" ]; then
        step 'mount volumes'
        mount_volume "$DOCKER_VOLUME" /var/lib/docker
    fi
    if [ "$NODE_ROLE" = master ]; then
        step 'make the certificate of this manager'
        make_certificate
    fi
    if [ -e /opt/magnum-lite/flannel.sh ]; then
        . /opt/magnum-lite/flannel.sh
        [ "$NODE_ROLE" != master ] || set_up_etcd
        set_up_flannel
    fi
    step 'start docker'
    systemctl enable --now magnum-lite-guard.service
    start_docker
    # shellcheck disable=SC2034  # node.sh sends it
    REPORT=$(docker version --format '{{.Server.Version}}')
    if [ "$NODE_ROLE" = master ] && [ -n "$NODE_BEGINS" ] && ! ask; then
        step 'begin the swarm'
        # It says the token to join with.
        docker swarm init --advertise-addr "$NODE_ADDRESS" --availability drain \
            --default-addr-pool "$OVERLAY_CIDR" --default-addr-pool-mask-length "$OVERLAY_SUBNETLEN" >/dev/null
    else
        step 'wait for the swarm'
        until_ok ask
        step 'join the swarm'
        retry 6 join
    fi
    step 'wait for the node to be ready'
    until_ok node_ready
    if [ "$NODE_ROLE" = master ]; then
        # Not before: the load balancer would lead others to a Docker that knows of no swarm yet.
        step 'open the API of this manager'
        cp /etc/magnum-lite/manager.json /etc/docker/daemon.json
        restart_docker
        until_ok node_ready
        until_ok api "$NODE_ADDRESS" node inspect self --format '{{.Description.Hostname}} answers'
        systemctl enable --now magnum-lite-invite.service
        [ -z "$NODE_REPLACES" ] || take_over "$NODE_REPLACES"
    fi
    rm -rf "$PKI"
}

# The key of the authority is on this server anyway, so that a short life of its certificate would bring nothing: it ends
# with the authority.
make_certificate() {
    names="DNS:$NODE_NAME,DNS:localhost,IP:127.0.0.1"
    for name in "$NODE_ADDRESS" "$NODE_FLOATING_IP" "$API_ADDRESS" "$API_FLOATING_IP" $API_NAMES; do
        case $name in
        '') ;;
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
        esac
    done
    cat >"$PKI/extensions" <<END
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END
    end=$(openssl x509 -noout -enddate -in "$TLS/ca.crt" | cut -d = -f 2)
    days=$((($(date -d "$end" +%s) - $(date +%s)) / 86400))
    (umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out "$TLS/server.key")
    openssl req -new -key "$TLS/server.key" -subj "/CN=$NODE_NAME" -out "$PKI/server.csr"
    openssl x509 -req -in "$PKI/server.csr" -CA "$TLS/ca.crt" -CAkey "$PKI/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$PKI/extensions" -out "$TLS/server.crt"
}

# api ADDRESS COMMAND...: ask the Docker API of a manager as one.
api() {
    at=$1
    shift
    timeout 20 docker -H "tcp://$at:$API_PORT" --tlsverify --tlscacert "$TLS/ca.crt" --tlscert "$TLS/server.crt" \
        --tlskey "$TLS/server.key" "$@"
}

# ask: get the invitation, which is the token to join with in this role, and the addresses of managers. It is not shown.
ask() {
    (umask 077 && : >"$INVITATION")
    if [ "$NODE_ROLE" = master ]; then
        token=$(api "$API_ADDRESS" swarm join-token -q manager) || return 1
        api "$API_ADDRESS" info --format "$token{{range .Swarm.RemoteManagers}} {{.Addr}}{{end}}" >"$INVITATION"
    else
        timeout 20 openssl s_client -quiet -connect "$API_ADDRESS:$JOIN_PORT" -CAfile "$TLS/ca.crt" \
            -verify_return_error -verify_ip "$API_ADDRESS" -cert "$PKI/join.crt" -key "$PKI/join.key" \
            </dev/null >"$INVITATION"
    fi
    if ! grep -q '^SWMTKN-.* .' "$INVITATION"; then
        echo 'no manager invites this node'
        return 1
    fi
}

join() {
    read -r token managers <"$INVITATION"
    for manager in $managers; do
        echo "join through $manager"
        if [ "$NODE_ROLE" = master ]; then
            docker swarm join --token "$token" --advertise-addr "$NODE_ADDRESS" --availability drain "$manager" && return
        else
            docker swarm join --token "$token" --advertise-addr "$NODE_ADDRESS" "$manager" && return
        fi
        docker swarm leave --force || true
    done
    ask || true
    return 1
}

node_ready() {
    if [ "$NODE_ROLE" = master ]; then
        seen=$(docker node inspect self --format '{{.Status.State}} {{.ManagerStatus.Reachability}}')
        wanted='ready reachable'
    else
        seen=$(docker info --format '{{.Swarm.LocalNodeState}} {{.Swarm.Error}}')
        wanted='active '
    fi
    echo "it is $seen"
    [ "$seen" = "$wanted" ]
}

# take_over MANAGER: a manager that is to be replaced has no vote any more, and is forgotten, before its server is deleted.
# Until its server is gone the load balancer leads some requests to it, which it refuses.
take_over() {
    step "take $1 out of the swarm"
    retry 6 leave_out "$1"
}

leave_out() {
    # Nothing is done twice: a name that is not there is what is wanted.
    for id in $(docker node ls -q --filter "name=$1"); do
        [ "$(docker node inspect "$id" --format '{{.Description.Hostname}}')" = "$1" ] || continue
        [ "$(docker node inspect "$id" --format '{{.Spec.Role}}')" = worker ] || docker node demote "$id" || return 1
        docker node rm --force "$id" || return 1
    done
}

# A manager that has joined and failed must not go with a vote: two of which one is gone decide nothing.
give_up() {
    if [ "$NODE_ROLE" = master ] && [ -z "$NODE_BEGINS" ]; then
        timeout 30 docker node demote self || true
        timeout 60 docker swarm leave --force
    fi
}
