#!/usr/bin/env bash
# Builds the RunPod worker's image: deploy/Dockerfile with the roles of a worker. DOCKER names another engine.
set -euo pipefail

usage() {
    cat <<USAGE
usage: build.sh [--image NAME] [--tag TAG] [--registry HOST[/PATH]] [--no-cache] [--dry-run] [-- ARGUMENTS OF docker build]

  --image NAME      the image's name (comfyui-gateway-runpod)
  --tag TAG         its tag (the commit's short id, or latest outside a checkout)
  --registry HOST   put in front of the name, as push.sh needs it
  --no-cache        build every layer again
  --dry-run         only print the command

REGISTRY, IMAGE and TAG come from the environment, or from deploy/runpod/defaults.env; options override them.
USAGE
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC1091 # checked as a file of its own
source "$here/defaults.sh"
image="${IMAGE:-comfyui-gateway-runpod}" tag="${TAG:-}" registry="${REGISTRY:-}" dry_run=false
options=()
while (($#)); do
    case "$1" in
        --image | --tag | --registry)
            (($# > 1)) || { echo "build.sh: $1 needs a value" >&2; exit 64; }
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --no-cache) options+=(--no-cache) ;;
        --dry-run) dry_run=true ;;
        -h | --help) usage; exit 0 ;;
        --) shift; options+=("$@"); break ;;
        *) echo "build.sh: there is no option $1" >&2; usage >&2; exit 64 ;;
    esac
    shift
done

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
revision="$(git -C "$root" rev-parse --short HEAD 2>/dev/null || true)"
tag="${tag:-${revision:-latest}}"
name="${registry:+${registry%/}/}$image:$tag"

# RunPod's machines are amd64, even if this one is not.
command=("${DOCKER:-docker}" build --platform linux/amd64 --file "$root/deploy/Dockerfile" --tag "$name"
    --build-arg "ROLES=gateway runpod" --build-arg "REVISION=${revision:-unknown}" "${options[@]}" "$root")
printf '%q ' "${command[@]}"
echo
if [[ "$dry_run" == true ]]; then exit 0; fi
"${command[@]}"
echo "built $name; set WORKER=runpod in the endpoint's environment"
