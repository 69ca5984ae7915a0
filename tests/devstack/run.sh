#!/usr/bin/env bash
# Run phases of the plugin as stack.sh, unstack.sh and clean.sh do: `run.sh SCRATCH PHASE...`, each phase as one word,
# such as "stack install". SCRATCH/localrc has what local.conf and stackrc set.
set -o errexit -o nounset -o pipefail
SCRATCH=$1
shift
# shellcheck source=/dev/null
source "$SCRATCH/localrc"
# shellcheck source=tests/devstack/standins.sh
source "$(dirname "$0")/standins.sh"
# shellcheck source=devstack/settings
source "$DEST/magnum-lite/devstack/settings"
for phase in "$@"; do
    read -ra words <<<"$phase"
    echo "==== $phase"
    # shellcheck source=devstack/plugin.sh
    source "$DEST/magnum-lite/devstack/plugin.sh" "${words[@]}"
    if [[ "$phase" == "stack post-config" && -f "$SCRATCH/post-config" ]]; then
        while read -r section option value; do
            iniset "$MAGNUM_LITE_CONF" "$section" "$option" "$value"
        done <"$SCRATCH/post-config"
    fi
done
