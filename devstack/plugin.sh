#!/usr/bin/env bash
# Entry point for DevStack: plugin.sh MODE [PHASE]. The functions are in lib/magnum-lite.

_XTRACE_MAGNUM_LITE_PLUGIN=$(set +o | grep xtrace)
set +o xtrace

# shellcheck source=devstack/lib/magnum-lite
source "$MAGNUM_LITE_DIR/devstack/lib/magnum-lite"

if is_service_enabled magnum-lite-api magnum-lite-cond; then
    case "$1 ${2:-}" in
    "stack install")
        echo_summary "Installing magnum-lite"
        check_magnum_lite
        install_magnum_lite
        ;;
    "stack post-config")
        echo_summary "Configuring magnum-lite"
        configure_magnum_lite
        if is_service_enabled magnum-lite-api; then
            create_magnum_lite_accounts
        fi
        ;;
    "stack extra")
        echo_summary "Starting magnum-lite"
        init_magnum_lite
        start_magnum_lite
        ;;
    "unstack ")
        stop_magnum_lite
        ;;
    "clean ")
        cleanup_magnum_lite
        ;;
    esac
fi

$_XTRACE_MAGNUM_LITE_PLUGIN
