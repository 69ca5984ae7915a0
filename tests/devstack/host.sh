#!/usr/bin/env bash
# A host to install on: `host.sh SCRATCH SCRIPT`, in a mount namespace of its own (unshare --mount). /etc, /opt and /var/lib
# are copies that end with it. Two commands are stood in for: apt-get and systemctl.
set -o errexit -o nounset -o pipefail
SCRATCH=$1
for folder in etc opt var/lib; do
    mkdir -p "$SCRATCH/upper/$folder" "$SCRATCH/work/$folder"
    mount -t overlay overlay \
        -o "lowerdir=/$folder,upperdir=$SCRATCH/upper/$folder,workdir=$SCRATCH/work/$folder" "/$folder"
done
mkdir -p /etc/mysql/conf.d
printf '[client]\nhost = 127.0.0.1\nuser = root\n' >"$SCRATCH/my.cnf"
export MYSQL_HOME=$SCRATCH PGHOST=127.0.0.1 PGUSER=postgres

function apt-get {
    local word
    for word in "$@"; do
        case $word in
        update | install | -y) ;;
        *) apt-cache show "$word" >/dev/null 2>&1 || { echo "Debian has no package $word" >&2; return 1; } ;;
        esac
    done
}

# Runs what the unit says as its user, with its variables and nothing else.
function start_unit {
    local unit=/etc/systemd/system/$1.service command user
    systemd-analyze verify --man=no "$unit"
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    user=$(sed -n 's/^User=//p' "$unit")
    # shellcheck disable=SC2046,SC2086
    (cd / && exec env -i PATH=/usr/sbin:/usr/bin $(sed -n 's/^Environment=//p' "$unit") \
        setsid setpriv --reuid "$user" --regid "$user" --clear-groups $command) \
        >>"$SCRATCH/log/$1.log" 2>&1 </dev/null &
    echo $! >"$SCRATCH/run/$1.pid"
}

# Waits as long as systemd would, which then kills. A guide that comes to that has failed.
function stop_unit {
    local pid unit=/etc/systemd/system/$1.service
    [[ -s "$SCRATCH/run/$1.pid" ]] || return 0
    pid=$(cat "$SCRATCH/run/$1.pid")
    kill -TERM "$pid"
    rm "$SCRATCH/run/$1.pid"
    if ! timeout "$(sed -n 's/^TimeoutStopSec=//p' "$unit")" tail --pid="$pid" -f /dev/null; then
        kill -KILL -- "-$pid"
        return 1
    fi
}

function systemctl {
    local verb=$1 unit
    shift
    for unit in "$@"; do
        [[ "$unit" == --now ]] || [[ -f /etc/systemd/system/$unit.service ]] || return 5
        case "$verb $unit" in
        *" --now") ;;
        "enable "* | "start "*) start_unit "$unit" ;;
        "disable "* | "stop "*) stop_unit "$unit" ;;
        *) return 1 ;;
        esac
    done
}

trap 'stop_unit magnum-lite-api; stop_unit magnum-lite-conductor' EXIT
cd "$SCRATCH/dest/magnum-lite"
set -o xtrace
# shellcheck source=/dev/null
source "$2"
