#!/usr/bin/env bash
# Pushes the image of build.sh to a registry from which RunPod can pull it. DOCKER names another engine.
set -euo pipefail

usage() {
    cat <<USAGE
usage: push.sh --registry HOST[/PATH] [--image NAME] [--tag TAG] [--no-cache] [--dry-run]

  --registry HOST   the registry, such as docker.io/you
  --image NAME      the image's name (comfyui-gateway-runpod)
  --tag TAG         its tag (the commit's short id, or latest outside a checkout)
  --no-cache        first build every layer again
  --dry-run         only print the commands

REGISTRY, IMAGE and TAG come from the environment, or from deploy/runpod/defaults.env; options override them.
USAGE
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC1091 # checked as a file of its own
source "$here/defaults.sh"
image="${IMAGE:-comfyui-gateway-runpod}" tag="${TAG:-}" registry="${REGISTRY:-}" dry_run=false build=false
while (($#)); do
    case "$1" in
        --image | --tag | --registry)
            (($# > 1)) || { echo "push.sh: $1 needs a value" >&2; exit 64; }
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --no-cache) build=true ;;
        --dry-run) dry_run=true ;;
        -h | --help) usage; exit 0 ;;
        *) echo "push.sh: there is no option $1" >&2; usage >&2; exit 64 ;;
    esac
    shift
done
[[ -n "$registry" ]] || { echo "push.sh: --registry is needed" >&2; exit 64; }

tag="${tag:-$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo latest)}"
docker="${DOCKER:-docker}"
local_name="$image:$tag" name="${registry%/}/$image:$tag"

run() {
    printf '%q ' "$@"
    echo
    if [[ "$dry_run" == false ]]; then "$@"; fi
}

if [[ "$build" == true ]]; then
    build_options=(--image "$image" --tag "$tag" --registry "$registry" --no-cache)
    if [[ "$dry_run" == true ]]; then build_options+=(--dry-run); fi
    "$here/build.sh" "${build_options[@]}"
elif [[ "$dry_run" == true ]] || ! "$docker" image inspect "$name" >/dev/null 2>&1; then
    # The image was built without --registry.
    run "$docker" tag "$local_name" "$name"
fi
run "$docker" push "$name"
if [[ "$dry_run" == false ]]; then echo "pushed $name"; fi
