# shellcheck shell=sh
# The steps that make a node of a Mesos cluster. node.sh reads this file and calls `set_up_node`.
#
# Masters run ZooKeeper, mesos-master and Marathon, workers Docker and mesos-agent. Nobody is asked where the others are:
# the addresses of all masters are known before any of them boots. A master reports success when a leading master and
# Marathon answer it, a worker when the leading master counts its agent.

[ ! -e /opt/magnum-lite/docker.sh ] || . /opt/magnum-lite/docker.sh
[ ! -e /opt/magnum-lite/flannel.sh ] || . /opt/magnum-lite/flannel.sh

MASTERS=$(echo "$MASTER_ADDRESSES" | tr , ' ')
ZOOKEEPER=/usr/share/zookeeper/bin/zkServer.sh ZOO_CFG=/etc/magnum-lite/zoo.cfg ZOO_DATA=/var/lib/zookeeper

set_up_node() {
    [ "$(uname -n)" = "$NODE_NAME" ] || hostnamectl set-hostname "$NODE_NAME"
    # What runs on Java looks for the address of its own name.
    grep -qs "[[:space:]]$NODE_NAME\$" /etc/hosts || echo "$NODE_ADDRESS $NODE_NAME" >>/etc/hosts
    if [ "$NODE_ROLE" = master ]; then set_up_master; else set_up_worker; fi
}

# There is nothing to undo: a master that has failed is not replaced, and an agent has no vote.
give_up() { :; }

set_up_master() {
    if [ -n "$DOCKER_VOLUME" ]; then
        step 'mount volumes'
        mount_volume "$DOCKER_VOLUME" "$ZOO_DATA"
    fi
    step 'install zookeeper'
    [ -x "$ZOOKEEPER" ] || packages zookeeper
    step 'install mesos'
    install_package mesos-master mesos_package_url "$MESOS_PACKAGE_URL" "$MESOS_PACKAGE_SHA256"
    step 'install marathon'
    install_package marathon marathon_package_url "$MARATHON_PACKAGE_URL" "$MARATHON_PACKAGE_SHA256"
    if [ -n "$FLANNEL_CONFIG" ]; then
        set_up_etcd
    fi
    step 'start zookeeper'
    start_zookeeper
    step 'wait for zookeeper'
    until_ok "$ZOOKEEPER" status "$ZOO_CFG"
    step 'start mesos-master'
    start_master
    step 'wait for a leading master'
    until_ok ask "http://$NODE_ADDRESS:5050/master/slaves"
    step 'start marathon'
    start_marathon
    step 'wait for marathon'
    until_ok ask "http://$NODE_ADDRESS:$API_PORT/v2/leader"
    ask "http://$NODE_ADDRESS:5050/version"
    # shellcheck disable=SC2034  # node.sh sends it
    REPORT=$(sed -n 's/.*"version": *"\([^"]*\)".*/\1/p' "$STATE/answer")
}

set_up_worker() {
    step 'install docker'
    install_docker
    step 'install mesos'
    install_package mesos-agent mesos_package_url "$MESOS_PACKAGE_URL" "$MESOS_PACKAGE_SHA256"
    if [ -n "$DOCKER_VOLUME" ]; then
        step 'mount volumes'
        mount_volume "$DOCKER_VOLUME" /var/lib/docker
    fi
    if [ -n "$FLANNEL_CONFIG" ]; then
        set_up_flannel
    fi
    step 'start docker'
    systemctl enable --now magnum-lite-guard.service
    start_docker
    step 'start mesos-agent'
    start_agent
    step 'wait for the leading master to count this agent'
    until_ok counted
}

# install_package PROGRAM LABEL URL SHA256: from the image, or a package of the operator. What a package has started is
# stopped: it comes back as ours.
install_package() {
    if [ -n "$3" ]; then
        fetch "$3" "$4" "$STATE/package.deb"
        if [ "$(head -c 7 "$STATE/package.deb")" = '!<arch>' ]; then
            packages "$STATE/package.deb"
        else
            tar -xf "$STATE/package.deb" -C / --no-same-owner --keep-directory-symlink
            ldconfig
        fi
        rm "$STATE/package.deb"
    fi
    have "$1" || fail "the image lacks $1, and no distribution has it, for Mesos is retired; use an image that has it," \
        "or name the label $2"
    for unit in zookeeper mesos-master mesos-slave mesos-agent marathon; do
        systemctl disable --now "$unit.service" >/dev/null 2>&1 || true
    done
}

# ask URL: get what one of the cluster's own services answers into $STATE/answer.
ask() {
    if have curl; then
        curl -fsSL --noproxy '*' --max-time 20 -o "$STATE/answer" "$1"
    else
        wget -q --no-proxy -T 20 -O "$STATE/answer" "$1"
    fi
}

# each_master BEFORE BEHIND: a list with commas of all masters' addresses.
each_master() {
    list=
    for address in $MASTERS; do
        list="${list:+$list,}$1$address$2"
    done
    echo "$list"
}

count_masters() {
    # shellcheck disable=SC2086  # it is a list of addresses
    set -- $MASTERS
    echo $#
}

zk_url() { echo "zk://$(each_master '' :2181)/$1"; }

# A member's number is its place in the list, which stays. With a list of one ZooKeeper would complain.
start_zookeeper() {
    id -u zookeeper >/dev/null 2>&1 || useradd --system --home-dir "$ZOO_DATA" --shell /usr/sbin/nologin zookeeper
    mkdir -p "$ZOO_DATA" /var/log/zookeeper
    number=0
    {
        printf '%s\n' tickTime=2000 initLimit=10 syncLimit=5 "dataDir=$ZOO_DATA" clientPort=2181 \
            admin.enableServer=false autopurge.snapRetainCount=3 autopurge.purgeInterval=24
        for address in $MASTERS; do
            number=$((number + 1))
            [ "$(count_masters)" = 1 ] || echo "server.$number=$address:2888:3888"
            [ "$address" != "$NODE_ADDRESS" ] || echo "$number" >"$ZOO_DATA/myid"
        done
    } >"$ZOO_CFG"
    chown -R zookeeper: "$ZOO_DATA" /var/log/zookeeper
    run_service zookeeper 'User=zookeeper
Environment=USER=zookeeper JMXDISABLE=true' "$ZOOKEEPER" start-foreground "$ZOO_CFG"
}

start_master() {
    run_service mesos-master '' "$(command -v mesos-master)" "--zk=$(zk_url mesos)" \
        "--quorum=$(($(count_masters) / 2 + 1))" --work_dir=/var/lib/mesos "--ip=$NODE_ADDRESS" \
        "--hostname=$NODE_ADDRESS" "--cluster=$CLUSTER_NAME"
}

# mesos-master calls back, at a port that the security groups let through.
start_marathon() {
    run_service marathon "Environment=LIBPROCESS_IP=$NODE_ADDRESS LIBPROCESS_PORT=15101" "$(command -v marathon)" \
        --master "$(zk_url mesos)" --zk "$(zk_url marathon)" --hostname "$NODE_ADDRESS" --http_port "$API_PORT"
}

# Executors outlive an agent that is restarted. The time is for images that Docker has to pull.
start_agent() {
    set -- "--master=$(zk_url mesos)" "--ip=$NODE_ADDRESS" "--hostname=$NODE_ADDRESS" "--work_dir=$AGENT_WORK_DIR" \
        --containerizers=docker,mesos --executor_registration_timeout=5mins "--attributes=$AGENT_ATTRIBUTES"
    [ -z "$AGENT_ISOLATION" ] || set -- "$@" "--isolation=$AGENT_ISOLATION"
    [ -z "$AGENT_IMAGE_PROVIDERS" ] || set -- "$@" "--image_providers=$AGENT_IMAGE_PROVIDERS"
    environment=/etc/magnum-lite/executor-environment.json
    [ ! -e "$environment" ] || set -- "$@" "--executor_environment_variables=file://$environment"
    mkdir -p "$AGENT_WORK_DIR"
    run_service mesos-agent 'KillMode=process
Delegate=yes' "$(command -v mesos-agent)" "$@"
}

# The agent knows its id when a master has taken it, and the leading one is asked whether it is still so.
counted() {
    ask "http://$NODE_ADDRESS:5051/state" || return 1
    id=$(grep -o '"id": *"[^"]*-S[0-9]*"' "$STATE/answer" | head -n 1 | cut -d '"' -f 4)
    if [ -z "$id" ]; then
        echo 'no master has taken the agent'
        return 1
    fi
    for address in $MASTERS; do
        if ask "http://$address:5050/master/slaves?slave_id=$id" && grep -q '"active": *true' "$STATE/answer"; then
            return 0
        fi
    done
    echo "no leading master counts the agent $id"
    return 1
}
