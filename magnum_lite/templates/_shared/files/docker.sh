# shellcheck shell=sh
# Docker on a node, of the image, of a tarball or of packages; engine.sh of engines that need it reads this file.

# shellcheck disable=SC2034  # node.sh says it
INSTEAD='name the label docker_tarball_url, in which openssl and socat may be, too'

# install_docker PROGRAM:PACKAGE...: Docker, and other programs that a node needs, each with its package. What a package has
# started is stopped: it comes back as ours.
install_docker() {
    if [ -n "$DOCKER_TARBALL_URL" ]; then
        have tar || packages tar
        fetch "$DOCKER_TARBALL_URL" "$DOCKER_TARBALL_SHA256" "$STATE/docker.tgz"
        mkdir -p "$STATE/docker" "$BIN"
        tar -xzf "$STATE/docker.tgz" -C "$STATE/docker"
        find "$STATE/docker" -type f -perm -100 -exec install -m 755 -t "$BIN" {} +
        rm -r "$STATE/docker.tgz" "$STATE/docker"
        hash -r
    fi
    missing=
    for pair in iptables:iptables ip:iproute2 "$@"; do
        have "${pair%:*}" || missing="$missing ${pair#*:}"
    done
    if ! have dockerd; then
        if have zypper; then missing="$missing docker"; else missing="$missing docker.io"; fi
    fi
    # shellcheck disable=SC2086  # it is a list of names
    [ -z "$missing" ] || packages $missing
    have docker || packages docker-cli
    systemctl stop docker.service docker.socket 2>/dev/null || true
}

# In the units of distributions a socket of systemd is dockerd's; where dockerd listens stands in its configuration here.
start_docker() {
    systemctl mask --now docker.socket
    mkdir -p /etc/docker
    cp /etc/magnum-lite/daemon.json /etc/docker/daemon.json
    cat >/etc/systemd/system/docker.service <<END
[Unit]
Description=Docker
Wants=network-online.target
After=network-online.target containerd.service

[Service]
Type=notify
Environment=PATH=$PATH
ExecStart=$(command -v dockerd)
ExecReload=/bin/kill -s HUP \$MAINPID
TimeoutStartSec=300
Delegate=yes
KillMode=process
Restart=always
RestartSec=2
StartLimitInterval=0
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable docker.service
    restart_docker
}

restart_docker() {
    if ! timeout 320 systemctl restart docker.service; then
        journalctl -u docker.service -n 8 -o cat --no-pager
        return 1
    fi
}
