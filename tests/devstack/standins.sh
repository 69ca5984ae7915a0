#!/usr/bin/env bash
# As much of DevStack as the plugin uses, for a machine without one: sourced by run.sh.
#
# What can be real is: Keystone is asked, databases are made with `mysql`, virtual hosts with
# `rabbitmqctl`, Python packages are installed, and Apache and uWSGI run. In the place of systemd, sudo and the folders
# under /etc and /var is the scratch folder. Each function refuses what the real one would not take: the number and kind
# of its arguments, and what must be there before. What DevStack's functions are called with, and what they do, was read
# in openstack/devstack of July 2026 (functions-common, functions, inc/python, lib/apache, lib/keystone, lib/database,
# lib/rpc_backend).

# -- what every script of DevStack has

function die {
    local line=$1
    shift
    echo "die: line $line: $*" >&2
    exit 1
}

# Called as it must not be: the test fails with the place.
function refuse {
    echo "STAND-IN: ${FUNCNAME[1]}: $* (called by ${FUNCNAME[2]} at ${BASH_SOURCE[2]##*/}:${BASH_LINENO[1]})" >&2
    exit 97
}

function wants {
    local least=$1 most=$2 given=$3
    if ((given < least || given > most)); then
        echo "STAND-IN: ${FUNCNAME[1]} takes $least to $most arguments and has $given" \
            "(called at ${BASH_SOURCE[2]##*/}:${BASH_LINENO[1]})" >&2
        exit 97
    fi
    echo "${FUNCNAME[1]}" >>"$SCRATCH/calls"
}

function echo_summary { wants 1 99 $#; echo "== $*"; }
function sudo { "$@"; }
function trueorfalse { wants 2 2 $#; local -n named=$2; [[ "${named:-$1}" == "True" ]] && echo True || echo False; }
function is_ubuntu { return 0; }
function time_start { :; }
function time_stop { :; }

# -- services, plugins

function define_plugin { wants 1 1 $#; [[ "$1" == magnum-lite ]] || refuse "the name is that of enable_plugin"; }
function plugin_requires { wants 2 2 $#; }

function enable_service {
    wants 1 99 $#
    local service
    for service in "$@"; do
        [[ ",${DISABLED_SERVICES:-}," == *",$service,"* ]] || ENABLED_SERVICES+=",$service"
    done
}

function is_service_enabled {
    local services=$* service
    [[ -n "${services// /}" ]] || refuse "no service is named"
    for service in $services; do
        if [[ ",$ENABLED_SERVICES," == *",$service,"* ]]; then
            return 0
        fi
    done
    return 1
}

# -- files

function iniset {
    wants 4 99 $#
    [[ "$1" == "$SCRATCH"/* ]] || refuse "$1 is outside of the scratch folder"
    [[ "$4" != *$'\n'* ]] || refuse "a value has one line"
    "$PYTHON" - "$@" <<'PYTHON'
import configparser, pathlib, sys
path, section, option, *values = sys.argv[1:]
parser = configparser.RawConfigParser(default_section='\0', strict=False, interpolation=None)
parser.optionxform = str
parser.read(path)
if not parser.has_section(section):
    parser.add_section(section)
parser.set(section, option, ' '.join(values))
with pathlib.Path(path).open('w') as file:
    parser.write(file)
PYTHON
}

# -- Python

function get_python_exec_prefix { echo "$SCRATCH/venv/bin"; }

function setup_develop {
    wants 1 2 $#
    [[ -f "$1/setup.cfg" || -f "$1/pyproject.toml" ]] || refuse "$1 is no Python project"
    "$UV" pip install -q -p "$SCRATCH/venv/bin/python" -c "$1/constraints.txt" -e "$1"
}

# -- Keystone, with the cloud devstack-system-admin

function keystone { "$PYTHON" "${BASH_SOURCE[0]%/*}/keystone.py" "$@"; }

function get_or_create_domain { wants 2 2 $#; keystone ensure domain "$1" description="$2"; }

function get_or_create_user {
    wants 3 4 $#
    [[ -n "$2" ]] || refuse "no password"
    keystone ensure user "$1" password="$2" domain="$3"
}

function get_or_add_user_project_role { wants 3 5 $#; keystone grant "$1" "$2" project "$3"; }
function get_or_add_user_domain_role { wants 3 3 $#; keystone grant "$1" "$2" domain "$3"; }

function create_service_user {
    wants 1 2 $#
    get_or_create_user "$1" "$SERVICE_PASSWORD" "$SERVICE_DOMAIN_NAME"
    get_or_add_user_project_role service "$1" "$SERVICE_PROJECT_NAME" "$SERVICE_DOMAIN_NAME" "$SERVICE_DOMAIN_NAME"
    if [[ -n "${2:-}" ]]; then
        get_or_add_user_project_role "$2" "$1" "$SERVICE_PROJECT_NAME" "$SERVICE_DOMAIN_NAME" "$SERVICE_DOMAIN_NAME"
    fi
}

# The second argument is the type, by which it is looked for; the first one the name.
function get_or_create_service { wants 3 3 $#; keystone ensure service "$1" type="$2" description="$3"; }

function get_or_create_endpoint {
    wants 3 5 $#
    local service=$1 region=$2 interface url
    shift 2
    for interface in public admin internal; do
        url=${1:-}
        shift || true
        [[ -n "$url" ]] || continue
        [[ "$url" =~ ^https?:// ]] || refuse "$url is no URL"
        keystone ensure endpoint - service="$service" interface=$interface region_id="$region" url="$url"
    done
}

function configure_keystone_authtoken_middleware {
    wants 2 4 $#
    local section=${3:-keystone_authtoken}
    iniset "$1" "$section" auth_type password
    iniset "$1" "$section" interface public
    iniset "$1" "$section" auth_url "$KEYSTONE_SERVICE_URI"
    iniset "$1" "$section" username "$2"
    iniset "$1" "$section" password "$SERVICE_PASSWORD"
    iniset "$1" "$section" user_domain_name "$SERVICE_DOMAIN_NAME"
    iniset "$1" "$section" project_name "$SERVICE_PROJECT_NAME"
    iniset "$1" "$section" project_domain_name "$SERVICE_DOMAIN_NAME"
    iniset "$1" "$section" www_authenticate_uri "$KEYSTONE_SERVICE_URI"
    iniset "$1" "$section" cafile "$SSL_BUNDLE_FILE"
    iniset "$1" "$section" memcached_servers "$MEMCACHE_SERVERS"
}

# -- database, broker

function database_connection_url {
    wants 1 1 $#
    echo "mysql+pymysql://$DATABASE_USER:$DATABASE_PASSWORD@$DATABASE_HOST/$1?charset=utf8"
}

function recreate_database {
    wants 1 1 $#
    mysql -u"$DATABASE_USER" -p"$DATABASE_PASSWORD" -h"$DATABASE_HOST" -e "DROP DATABASE IF EXISTS $1;
        CREATE DATABASE $1 CHARACTER SET utf8;"
}

function get_transport_url { wants 0 1 $#; echo "rabbit://$RABBIT_USERID:$RABBIT_PASSWORD@$RABBIT_HOST:5672/${1:-}"; }

function rpc_backend_add_vhost {
    wants 1 1 $#
    is_service_enabled rabbit || refuse "only where the broker is"
    rabbitmqctl -q list_vhosts name | grep -qxF "$1" || rabbitmqctl -q add_vhost "$1"
    rabbitmqctl -q set_permissions -p "$1" "$RABBIT_USERID" ".*" ".*" ".*"
}

function iniset_rpc_backend {
    wants 2 4 $#
    iniset "$2" "${3:-DEFAULT}" transport_url "$(get_transport_url "${4:-}")"
}

# -- Apache and uWSGI, in the scratch folder

function setup_logging { wants 1 4 $#; iniset "$1" DEFAULT use_journal False; }
function apache_site_config_for { wants 1 1 $#; echo "$SCRATCH/apache/sites/$1.conf"; }

function restart_apache_server {
    if [[ -s "$SCRATCH/apache/pid" ]]; then
        apache2 -f "$SCRATCH/apache/apache2.conf" -k graceful
    else
        apache2 -f "$SCRATCH/apache/apache2.conf" -k start
    fi
}

function write_uwsgi_config {
    wants 3 5 $#
    local conf=$1 wsgi=$2 url=$3 http=${4:-} name=${5:-}
    [[ "$wsgi" =~ ^[a-zA-Z0-9_.]+:[a-zA-Z0-9_]+$ ]] || refuse "$wsgi is no module path: others are deprecated"
    [[ "$url" == /* ]] || refuse "$url is no path"
    [[ -z "$http" ]] || refuse "this one is behind Apache"
    [[ -d "${conf%/*}" ]] || refuse "the folder of $conf is not there"
    local socket="$SCRATCH/run/$name.socket"
    rm -f "$conf"
    iniset "$conf" uwsgi module "$wsgi"
    iniset "$conf" uwsgi processes "$API_WORKERS"
    iniset "$conf" uwsgi master true
    iniset "$conf" uwsgi die-on-term true
    iniset "$conf" uwsgi exit-on-reload false
    iniset "$conf" uwsgi worker-reload-mercy "$WORKER_TIMEOUT"
    iniset "$conf" uwsgi enable-threads true
    iniset "$conf" uwsgi thunder-lock true
    iniset "$conf" uwsgi hook-master-start "unix_signal:15 gracefully_kill_them_all"
    iniset "$conf" uwsgi buffer-size 65535
    iniset "$conf" uwsgi add-header "Connection: close"
    iniset "$conf" uwsgi lazy-apps true
    iniset "$conf" uwsgi socket "$socket"
    iniset "$conf" uwsgi chmod-socket 666
    echo "ProxyPass \"$url\" \"unix:$socket|uwsgi://uwsgi-uds-$name\" retry=0 acquire=1" \
        >"$(apache_site_config_for "$name")"
    restart_apache_server
}

function remove_uwsgi_config {
    wants 2 2 $#
    [[ "$2" != */* ]] || refuse "the second argument is the name of the site"
    rm -f "$1"
    # The real one disables the site and leaves its file to whoever wrote it.
    if [[ -f "$(apache_site_config_for "$2")" ]]; then
        mv "$(apache_site_config_for "$2")" "$SCRATCH/run/site"
        restart_apache_server
        mv "$SCRATCH/run/site" "$(apache_site_config_for "$2")"
    fi
}

# -- processes: what systemd would do with the unit

function run_process {
    wants 2 5 $#
    local service=$1 command=$2 variables=${5:-}
    is_service_enabled "$service" || return 0
    [[ -z "${3:-}${4:-}" ]] || refuse "no other group and user is expected"
    [[ "$variables" =~ ^([A-Z_]+=[^ ]+( |$))*$ ]] || refuse "variables are A=1 B=2, not $variables"
    [[ "$command" == /* ]] || refuse "the command must begin with an absolute path: $command"
    [[ "$command" != *sudo* ]] || refuse "systemd runs no sudo"
    [[ -x "${command%% *}" ]] || refuse "${command%% *} is no program"
    # systemd splits at spaces as this does; there is no shell.
    # shellcheck disable=SC2086
    (cd / && exec env -i PATH="$PATH" $variables setsid $command) >"$SCRATCH/log/$service.log" 2>&1 </dev/null &
    echo $! >"$SCRATCH/run/$service.pid"
}

function stop_process {
    wants 1 1 $#
    local pid_file="$SCRATCH/run/$1.pid" pid
    is_service_enabled "$1" && [[ -s "$pid_file" ]] || return 0
    pid=$(cat "$pid_file")
    if kill -TERM "$pid"; then
        timeout 100 tail --pid="$pid" -f /dev/null || refuse "$1 does not stop"
    fi
    rm "$pid_file"
}

function wait_for_service {
    wants 2 2 $#
    local end code
    end=$((SECONDS + $1))
    while ((SECONDS < end)); do
        code=$(curl -k --noproxy '*' -s -o /dev/null -w '%{http_code}' "$2") || code=000
        if [[ "$code" != 503 && "$code" != 000 ]]; then
            return 0
        fi
        sleep 1
    done
    return 124
}
