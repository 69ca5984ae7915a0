#!/bin/sh
# Make this server a node, and tell the stack how that ended. Knows no engine and no operating system: what is to be
# done is the function `set_up_node` of engine.sh beside this file, which names its steps with `step`.
#
#   node.sh               do it; a failure reports the step, its exit code and the last lines of the log
#   node.sh --if-silent   report a failure if nothing was reported (systemd calls this afterwards, whatever happened)
#
# Output goes to /var/log/magnum-lite-node.log.
set -eu
umask 022
export LC_ALL=C HOME=/root PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HERE=/opt/magnum-lite STATE=/var/lib/magnum-lite LOG=/var/log/magnum-lite-node.log
STEP='read the settings' LOG_AT=0
# Where programs go that the image lacks: its /usr may be read-only.
BIN=/usr/local/bin
[ -w "$BIN" ] || BIN=/opt/bin
. /etc/magnum-lite/node.env
set -a
[ ! -e /etc/magnum-lite/proxy.env ] || . /etc/magnum-lite/proxy.env
set +a
mkdir -p "$STATE"

# step NAME: say what begins now. (No colons: Heat puts spaces after them when it hands a reason upwards.)
step() {
    STEP=$1
    echo "== $(date -u +%H%M%SZ) $STEP"
    LOG_AT=$(wc -c <"$LOG" 2>/dev/null || echo 0)
}

fail() {
    echo "$*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# until_ok COMMAND...: try until it succeeds; output is shown when it is not what the last try said. It may go on until
# the time of the whole unit is up, and then the report says which step it was.
until_ok() {
    said=
    while ! output=$("$@" 2>&1); do
        [ "$output" = "$said" ] || echo "$output"
        said=$output
        sleep 2
    done
    [ -z "$output" ] || echo "$output"
}

# retry TIMES COMMAND...: try again after a failure, with growing pauses.
retry() {
    left=$1 pause=2
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep "$pause"
        pause=$((pause * 2))
    done
}

# download URL FILE: over http, https, or from a file of the image.
download() {
    case $1 in
    file://*) cp "${1#file://}" "$2" ;;
    *) if have curl; then curl -fsSL --connect-timeout 20 -o "$2" "$1"; else wget -q -T 20 -O "$2" "$1"; fi ;;
    esac
}

# fetch URL SHA256 FILE: download, and refuse anything but the content that was meant.
fetch() {
    retry 5 download "$1" "$3"
    [ "$(sha256sum <"$3")" = "$2  -" ] || fail "$1 has another checksum than $2"
}

# packages NAME...: install from the sources of the image. At first boot others hold the package manager's lock. An image
# without a package manager must have what is needed, or get it in the way that the engine's INSTEAD says.
packages() {
    if have zypper; then
        ZYPP_LOCK_TIMEOUT=300 retry 5 zypper --quiet --non-interactive install --no-recommends "$@"
        return
    fi
    have apt-get || fail "the image lacks $* and has no package manager that is known here;" \
        "use an image that has this${INSTEAD:+, or $INSTEAD}"
    export DEBIAN_FRONTEND=noninteractive
    until_ok apt-get -qq -o DPkg::Lock::Timeout=60 update
    retry 5 apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"
}

# mount_volume ID FOLDER: mount the volume now and at every boot; a blank one gets a file system and what the folder holds.
mount_volume() {
    part=$(printf %.20s "$1")
    until_ok sh -c "ls /dev/disk/by-id/*'$part'*"
    device=$(readlink -f "$(find /dev/disk/by-id/ -name "*$part*" | head -n 1)")
    mkdir -p "$2" "$STATE/volume"
    if [ -z "$(blkid -s TYPE -o value "$device")" ]; then
        mkfs.ext4 -q "$device"
        mount "$device" "$STATE/volume"
        rm -rf "$STATE/volume/lost+found"
        cp -a "$2/." "$STATE/volume/"
        umount "$STATE/volume"
    fi
    echo "UUID=$(blkid -s UUID -o value "$device") $2 auto defaults,nofail 0 2" >>/etc/fstab
    mount "$2"
    ! have restorecon || restorecon -R "$2"
}

# run_service NAME LINES COMMAND...: have systemd keep it running; LINES are more lines of its section Service.
run_service() {
    unit=$1 lines=$2
    shift 2
    cat >"/etc/systemd/system/$unit.service" <<END
[Unit]
Description=$unit
Wants=network-online.target
After=network-online.target

[Service]
$lines
Environment=PATH=$PATH
ExecStart=$*
Restart=always
RestartSec=2
StartLimitInterval=0
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable "$unit.service"
    systemctl restart "$unit.service"
}

# text_to_json: the inside of a JSON string from any bytes on stdin, without the passwords of URLs.
text_to_json() {
    tr -c '[:print:]\n' '?' | sed -e 's#://[^/@ ]*@#://***@#g' -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e '$!s/$/\\n/' | tr -d '\n'
}

# post BODY: one try to reach the handle of this node. The token is not put on the command line.
post() {
    if have curl; then
        printf 'header = "X-Auth-Token: %s"\n' "$SIGNAL_TOKEN" | curl -fsS --max-time 30 --config - -o /dev/null \
            -X POST -H 'Content-Type: application/json' --data-binary "$1" "$SIGNAL_URL"
    else
        wget -q -T 30 -O /dev/null --header "X-Auth-Token: $SIGNAL_TOKEN" --header 'Content-Type: application/json' \
            --post-data "$1" "$SIGNAL_URL"
    fi
}

# report STATUS TEXT: Heat takes SUCCESS or FAILURE; at most about 1 KiB of text is sent. With it goes what the engine has
# put into REPORT, if anything.
report() {
    text=$(printf '%s' "$2" | head -c 1024 | text_to_json)
    data=$(printf '%s' "${REPORT:-}" | text_to_json)
    retry 8 post "{\"status\": \"$1\", \"reason\": \"$text\"${data:+, \"data\": \"$data\"}}"
    : >"$STATE/reported"
}

# last_lines: the end of what the present step wrote.
last_lines() { tail -c "+$((LOG_AT + 1))" "$LOG" 2>/dev/null | tail -c 700 || true; }

# give_up: the engine's own function of this name undoes what must not be there when a server is deleted that has failed.
give_up() { :; }

# report_failure TEXT: whoever reads the report may delete this server at once.
report_failure() {
    (give_up) || true
    report FAILURE "$1"
}

finish() {
    code=$?
    trap - EXIT
    if [ "$code" = 0 ]; then
        step 'report success'
        : >"$STATE/succeeded"
        report SUCCESS "$NODE_NAME is ready"
    else
        trap - TERM
        report_failure "$NODE_NAME: step '$STEP' failed (exit code $code): $(last_lines)"
    fi
    exit "$code"
}

if [ "${1:-}" = --if-silent ]; then
    [ ! -e "$STATE/reported" ] || exit 0
    [ ! -e "$STATE/succeeded" ] || { report SUCCESS "$NODE_NAME is ready"; exit 0; }
    . "$HERE/engine.sh"
    report_failure "$NODE_NAME: the set-up ended without a report (${SERVICE_RESULT:-} ${EXIT_STATUS:-}): $(last_lines)"
    exit 0
fi
trap finish EXIT
trap 'STEP="$STEP, which was still running when the time was up"; exit 124' TERM
. "$HERE/engine.sh"
set_up_node
