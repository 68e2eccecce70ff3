#!/bin/bash
# The container's entry point: checks the requirements of the role in WORKER, says what is missing, sets the variables for
# supervisord.conf and run.sh, and starts supervisord. With arguments, it runs these in the role's environment instead.
#
# Exit status: 64 a setting is wrong, 69 a requirement is missing, 70 a program could not be kept running, 73 a folder
# cannot be written; otherwise that of supervisord (0 after an orderly stop) or of the given command.
set -euo pipefail

say() { printf 'entrypoint | %s\n' "$*" >&2; }
fail() {
    local status="$1"
    shift
    say "cannot start: $*"
    exit "$status"
}

export WORKER="${WORKER:-gateway}"
export APP_DIR="${APP_DIR:-/opt/gateway}"
export DEPLOY_DIR="${DEPLOY_DIR:-$APP_DIR/deploy}"
export VENV_ROOT="${VENV_ROOT:-/opt/venv}"
export COMFYUI_DIR="${COMFYUI_DIR:-/opt/comfyui}"
export DATA_DIR="${DATA_DIR:-/data}"
export RUN_DIR="${RUN_DIR:-/tmp/comfyui-gateway}"
export COMFY_PORT="${COMFY_PORT:-8188}"
export START_RETRIES="${START_RETRIES:-5}" START_SECONDS="${START_SECONDS:-5}"
comfyui_python="$VENV_ROOT/comfyui/bin/python"

# The role

role="$WORKER"
case "$WORKER" in
    gateway | runpod | littlehorse | postgres) ;;
    # This role runs only ComfyUI, for a gateway in another container. It uses supervisord of the gateway's environment.
    comfyui) role=gateway ;;
    *) fail 64 "WORKER is '$WORKER'; it may be gateway, runpod, littlehorse, postgres or comfyui" ;;
esac
export VENV="${VENV:-$VENV_ROOT/$role}"
[[ -x "$VENV/bin/supervisord" ]] ||
    fail 69 "this image was built without the role $role (no $VENV): build it with --build-arg ROLES=\"gateway $role\""
export PATH="$VENV/bin:$PATH"

if (($#)); then
    cd "$APP_DIR"
    export PYTHONPATH="$APP_DIR"
    if [[ "$1" == supervisorctl ]]; then
        shift
        set -- supervisorctl --serverurl "unix://$RUN_DIR/supervisor.sock" "$@"
    fi
    exec "$@"
fi

# Folders

writable() { mkdir -p "$1" 2>/dev/null && [[ -w "$1" ]]; }

writable "$RUN_DIR" ||
    fail 73 "$RUN_DIR cannot be written by user $(id -u): give the container a writable /tmp (--tmpfs /tmp), or set RUN_DIR"

# Who runs ComfyUI: supervisord, the worker itself, or another container

has_comfyui=false
if [[ -n "${COMFYUI_COMMAND:-}" || -f "$COMFYUI_DIR/main.py" ]]; then has_comfyui=true; fi
elsewhere=false
case "${COMFYUI_SERVER_ADDRESS:-${COMFYUI_BASE_URL:-}}" in
    "" | 127.0.0.1:"$COMFY_PORT" | localhost:"$COMFY_PORT" | http://127.0.0.1:"$COMFY_PORT" | http://localhost:"$COMFY_PORT") ;;
    *) elsewhere=true ;;
esac
if [[ "$WORKER" == comfyui ]]; then elsewhere=false; fi
runs_comfyui="$has_comfyui"
if [[ "$elsewhere" == true || "${START_COMFYUI:-}" == false ]]; then runs_comfyui=false; fi
if [[ "$WORKER" == comfyui && "$has_comfyui" == false ]]; then
    fail 69 "there is no ComfyUI in this image ($COMFYUI_DIR/main.py): it is the gateway alone"
fi
if [[ "$has_comfyui" == false && "$elsewhere" == false ]]; then
    say "there is no ComfyUI in this image; the gateway waits for one at 127.0.0.1:$COMFY_PORT (set COMFYUI_SERVER_ADDRESS)"
fi

# ComfyUI's address, for the roles that have a setting for it. The Postgres worker reads COMFY_PORT itself.
case "$WORKER" in
    gateway | runpod) export COMFYUI_SERVER_ADDRESS="${COMFYUI_SERVER_ADDRESS:-127.0.0.1:$COMFY_PORT}" ;;
    littlehorse) export COMFYUI_BASE_URL="${COMFYUI_BASE_URL:-http://127.0.0.1:$COMFY_PORT}" ;;
esac

# The RunPod and Postgres workers start ComfyUI themselves, so that they can restart it after a GPU fault and put its last
# lines into a failed job. With START_COMFYUI=true, supervisord starts it for them, too.
starter=worker
case "$WORKER" in gateway | comfyui | littlehorse) starter=supervisord ;; esac
if [[ "${START_COMFYUI:-}" == true ]]; then starter=supervisord; fi
START_COMFYUI=false
if [[ "$runs_comfyui" == true && "$starter" == supervisord ]]; then START_COMFYUI=true; fi
export START_COMFYUI

if [[ "$runs_comfyui" == true ]]; then
    for folder in output input user temp cache; do
        writable "$DATA_DIR/$folder" || fail 73 "$DATA_DIR/$folder cannot be written by user $(id -u):" \
            "mount a volume at $DATA_DIR that this user may write (docker: --volume comfyui-data:$DATA_DIR," \
            "Kubernetes: securityContext.fsGroup: $(id -g))"
    done
    # Folders in which libraries keep what they download and compile, because the root may be read-only.
    export HOME="${HOME_DIR:-$DATA_DIR/cache}" XDG_CACHE_HOME="$DATA_DIR/cache" HF_HOME="${HF_HOME:-$DATA_DIR/cache/huggingface}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$DATA_DIR/cache/triton}" TORCHINDUCTOR_CACHE_DIR="$DATA_DIR/cache/inductor"
    export COMFYUI_OUTPUT_DIR="${COMFYUI_OUTPUT_DIR:-$DATA_DIR/output}"
    export COMFYUI_INPUT_DIR="${COMFYUI_INPUT_DIR:-$DATA_DIR/input}"
fi

# The folder of the gateway's jobs, which must not be the gateway's own folder, because that belongs to root. An empty
# STATE_DIR stays empty: jobs are in memory then. Jobs hold what callers sent, so no other user may read the folder.
if [[ "$WORKER" == gateway ]]; then
    export STATE_DIR="${STATE_DIR-$DATA_DIR/gateway}"
    [[ -z "$STATE_DIR" ]] || (umask 077 && writable "$STATE_DIR") ||
        fail 73 "STATE_DIR: $STATE_DIR cannot be written by user $(id -u): mount a volume at $DATA_DIR that this user" \
            "may write, or set STATE_DIR to another folder, or to nothing, which keeps jobs in memory"
    # This folder is only read, and need not exist.
    export WORKFLOWS_DIR="${WORKFLOWS_DIR-$DATA_DIR/workflows}"
    if [[ ",${BACKEND:-comfyui}," == *runpod* ]]; then
        export RUNPOD_DATA_DIR="${RUNPOD_DATA_DIR:-$DATA_DIR/runpod}"
        (umask 077 && writable "$RUNPOD_DATA_DIR") ||
            fail 73 "RUNPOD_DATA_DIR: $RUNPOD_DATA_DIR cannot be written by user $(id -u): mount a volume at $DATA_DIR that" \
                "this user may write, or set RUNPOD_DATA_DIR to another folder"
    fi
fi

# The GPU

check_gpu() {
    local gpus reason
    if [[ " ${COMFYUI_ARGS:-} " == *" --cpu "* || "${REQUIRE_GPU:-true}" == false ]]; then
        say "no GPU is required"
        return
    fi
    reason="there is no nvidia-smi"
    if command -v nvidia-smi >/dev/null; then
        if gpus="$(nvidia-smi -L 2>&1)" && [[ "$gpus" == GPU* ]]; then
            say "found ${gpus//$'\n'/; }"
            return
        fi
        reason="nvidia-smi says: ${gpus//$'\n'/; }"
    fi
    fail 69 "this container sees no GPU ($reason). Docker: run it with --gpus all, and install the NVIDIA Container" \
        "Toolkit on the host. Kubernetes: set the limit nvidia.com/gpu: 1. Without a GPU: COMFYUI_ARGS=--cpu"
}

if [[ "$runs_comfyui" == true ]]; then check_gpu; fi

# Models: on a volume, and of the manifest

# Prints a section of ComfyUI's extra_model_paths for one folder of models, with all its subfolders.
model_section() {
    local root="$1" name="$2" folder
    printf '%s:\n  base_path: "%s"\n' "$name" "$root"
    {
        # Folders that may be created while ComfyUI runs.
        printf '%s\n' checkpoints loras vae text_encoders diffusion_models clip_vision controlnet embeddings upscale_models
        for folder in "$root"/*/; do
            if [[ -d "$folder" ]]; then basename "$folder"; fi
        done
    } | sort -u | sed -E '/^[A-Za-z0-9_.-]+$/!d; s/.*/  "&": "&"/'
}

write_model_paths() {
    local number=0 root
    local roots="${MODEL_ROOTS:-${MODELS_DIR:-} /models $DATA_DIR/models /runpod-volume/models /workspace/models /workspace/ComfyUI/models}"
    : >"$RUN_DIR/extra_model_paths.yaml"
    for root in $roots; do
        [[ -d "$root" ]] || continue
        [[ -r "$root" && -x "$root" ]] || fail 73 "$root cannot be read by user $(id -u)"
        number=$((number + 1))
        model_section "$root" "volume_$number" >>"$RUN_DIR/extra_model_paths.yaml"
        say "using the models in $root"
    done
    ((number)) || say "no folder with models is mounted (checked: $roots): ComfyUI has only the models of the image"
}

# Sets `target` to the folder for downloads: on a volume that outlives this container. A mounted volume that cannot be
# written ends the start, because otherwise every new container would download the models and fill its own disk.
choose_models_dir() {
    local volume
    target="${MODELS_DIR:-}"
    if [[ -n "$target" ]]; then return; fi
    for volume in ${MODEL_VOLUMES:-/runpod-volume /workspace}; do
        [[ -e "$volume" ]] || continue
        writable "$volume" || fail 73 "MODEL_MANIFEST: the volume $volume cannot be written by user $(id -u): make it" \
            "writable, or set MODELS_DIR to the folder for the models"
        target="$volume/models"
        return
    done
    if [[ -w /models ]]; then
        target=/models
        return
    fi
    target="$DATA_DIR/models"
    say "MODEL_MANIFEST: no volume is mounted, so the models go to $target and last as long as $DATA_DIR"
}

download_models() {
    [[ -n "${MODEL_MANIFEST:-}" ]] || return 0
    local script="$DEPLOY_DIR/runpod/download_models.py" target
    [[ -f "$script" ]] || fail 69 "MODEL_MANIFEST is set, but this image has no $script"
    choose_models_dir
    writable "$target" || fail 73 "$target cannot be written by user $(id -u): models cannot be downloaded"
    say "downloading the models of $MODEL_MANIFEST to $target"
    "$VENV/bin/python" "$script" "$MODEL_MANIFEST" --models-dir "$target" >&2 ||
        fail 69 "not every model of $MODEL_MANIFEST could be downloaded; see above"
}

add_nodes() {
    [[ -n "${CUSTOM_NODES:-}" ]] || return 0
    say "adding the custom nodes of $CUSTOM_NODES"
    COMFYUI_PYTHON="$comfyui_python" "$DEPLOY_DIR/add_nodes.sh" "$CUSTOM_NODES" "$DATA_DIR/nodes" >&2 ||
        fail 69 "not every node of $CUSTOM_NODES could be added; see above"
    comfyui_python="$DATA_DIR/nodes/venv/bin/python"
    printf 'nodes:\n  base_path: "%s"\n  custom_nodes: custom_nodes\n' "$DATA_DIR/nodes" >>"$RUN_DIR/extra_model_paths.yaml"
}

if [[ "$runs_comfyui" == true ]]; then
    download_models
    write_model_paths
    add_nodes
fi

# ComfyUI's command line, for supervisord and for the workers that start it

if [[ "$runs_comfyui" == true && -z "${COMFYUI_COMMAND:-}" ]]; then
    listen=127.0.0.1
    if [[ "$WORKER" == comfyui ]]; then listen=0.0.0.0; fi
    arguments="--output-directory $DATA_DIR/output --input-directory $DATA_DIR/input --temp-directory $DATA_DIR"
    arguments+=" --user-directory $DATA_DIR/user --database-url sqlite:///$DATA_DIR/user/comfyui.db --disable-auto-launch"
    if [[ -s "$RUN_DIR/extra_model_paths.yaml" ]]; then
        arguments+=" --extra-model-paths-config $RUN_DIR/extra_model_paths.yaml"
    fi
    if [[ -f "$DEPLOY_DIR/runpod/extra_model_paths.yaml" ]]; then
        arguments+=" --extra-model-paths-config $DEPLOY_DIR/runpod/extra_model_paths.yaml"
    fi
    arguments+=" --listen $listen ${COMFYUI_ARGS:-}"
    export COMFYUI_COMMAND="$comfyui_python -u main.py --port $COMFY_PORT $arguments"
fi

# The rest

export START_WORKER=true
if [[ "$WORKER" == comfyui ]]; then START_WORKER=false; fi

grace="${SHUTDOWN_GRACE_SECONDS:-30}"
case "$WORKER" in
    gateway) default_stop=$((${grace%%.*} + 15)) ;;
    comfyui) default_stop=15 ;;
    # A worker finishes its current job.
    *) default_stop=600 ;;
esac
export STOP_SECONDS="${STOP_SECONDS:-$default_stop}"

if [[ "$WORKER" == gateway ]]; then
    cd "$APP_DIR"
    "$VENV/bin/python" -c 'import sys
from comfyui.exceptions import SettingsError
from comfyui.settings import ENV_FILE, load
from config import Settings
try:
    load(Settings, env_file=ENV_FILE)
except SettingsError as error:
    sys.exit(f"{error}")' || fail 64 "the settings are not valid; see above"
fi

say "starting $WORKER (ComfyUI: $([[ "$runs_comfyui" == true ]] && echo "here, run by $starter" || echo "not in this container"))"
exec "$DEPLOY_DIR/init.sh" "$VENV/bin/supervisord" --configuration "$DEPLOY_DIR/supervisord.conf"
