#!/bin/bash
# Runs one program of the container under its name: run.sh comfyui|gateway|runpod|littlehorse|postgres
# The program replaces this shell, so signals and exit status are its own; its lines get its name in front.
set -euo pipefail

name="$1"

case "$name" in
    comfyui)
        # xargs reads quotes like a shell, and expands nothing.
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
        # supervisord runs ComfyUI, and the worker only waits for it.
        unset COMFYUI_COMMAND COMFY_PATH
    elif [[ -n "${COMFYUI_COMMAND:-}${COMFY_PATH:-}" ]]; then
        # A killed worker leaves its ComfyUI behind, which still uses the port and the GPU.
        for process in /proc/[0-9]*; do
            if [[ "$(readlink "$process/cwd" 2>/dev/null || true)" == "${COMFYUI_DIR:?}" ]]; then
                echo "run.sh: ending a ComfyUI that was left behind (pid ${process##*/})" >&2
                kill -KILL "${process##*/}" || true
            fi
        done
    fi
fi

# JSON lines must stay JSON, so they get no name in front.
if [[ "$name" != comfyui && "${LOG_OUTPUT:-console}" == json ]]; then
    exec "${command[@]}"
fi
# A progress bar draws one line many times; each state becomes a line. tr and sed ignore the signal that stops the group,
# so that the last lines of a drain come through; they end when the program has closed its side.
exec "${command[@]}" > >(
    trap '' TERM INT
    stdbuf -oL tr '\r' '\n' | exec sed -u "s/^/$name | /"
) 2>&1
