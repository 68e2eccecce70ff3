#!/bin/bash
# Run one program of the container under its name: run.sh comfyui|gateway|runpod|littlehorse|postgres
# The program takes the place of this shell, so signals and exit status are its own; its lines get its name in front.
set -euo pipefail

name="$1"

case "$name" in
    comfyui)
        # xargs takes quotes as a shell does, and expands nothing.
        readarray -d '' -t command < <(xargs printf '%s\0' <<<"${COMFYUI_COMMAND:?}")
        cd "${COMFYUI_DIR:?}"
        ;;
    gateway) command=("${VENV:?}/bin/python" "${APP_DIR:?}/server.py") ;;
    runpod | littlehorse | postgres) command=("${VENV:?}/bin/python" -m "comfyui.workers.${name}_worker") ;;
    *)
        echo "run.sh: there is no program $name" >&2
        exit 64
        ;;
esac

if [[ "$name" != comfyui ]]; then
    cd "${APP_DIR:?}"
    export PYTHONPATH="$APP_DIR"
    if [[ "${START_COMFYUI:?}" == true ]]; then
        # supervisord runs it, the worker only waits for it.
        unset COMFYUI_COMMAND COMFY_PATH
    elif [[ -n "${COMFYUI_COMMAND:-}${COMFY_PATH:-}" ]]; then
        # A worker that was killed leaves its ComfyUI behind, which still has the port and the GPU.
        for process in /proc/[0-9]*; do
            if [[ "$(readlink "$process/cwd" 2>/dev/null || true)" == "${COMFYUI_DIR:?}" ]]; then
                echo "run.sh: ending a ComfyUI that was left behind (pid ${process##*/})" >&2
                kill -KILL "${process##*/}" || true
            fi
        done
    fi
fi

# The gateway's JSON lines stay JSON.
if [[ "$name" != comfyui && "${LOG_OUTPUT:-console}" == json ]]; then
    exec "${command[@]}"
fi
# A progress bar draws one line again and again; each state becomes a line. Both ignore the signal that stops the group:
# the last lines of a drain come through, and they end when the program has closed its side.
exec "${command[@]}" > >(
    trap '' TERM INT
    stdbuf -oL tr '\r' '\n' | exec sed -u "s/^/$name | /"
) 2>&1
