#!/usr/bin/env bash
set -euo pipefail
# build.sh and push.sh source this file. It reads missing variables from defaults.env (or the file RUNPOD_DEFAULTS), which
# has lines NAME=value and is not executed.

read_defaults() {
    local file="${RUNPOD_DEFAULTS:-$(dirname "${BASH_SOURCE[0]}")/defaults.env}" name value
    [[ -f "$file" ]] || return 0
    while IFS='=' read -r name value || [[ -n "$name" ]]; do
        case "$name" in
            REGISTRY | IMAGE | TAG) if [[ -z "${!name:-}" ]]; then printf -v "$name" %s "$value"; fi ;;
        esac
    done <"$file"
}
read_defaults
