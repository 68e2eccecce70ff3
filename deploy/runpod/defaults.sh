#!/usr/bin/env bash
set -euo pipefail
# Sourced by build.sh and push.sh: what the environment does not say, from defaults.env (or the file RUNPOD_DEFAULTS).
# The file has lines NAME=value; it is read, not run.

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
