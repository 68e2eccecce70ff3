#!/bin/bash
# Adds custom nodes when the container starts: add_nodes.sh LIST FOLDER, with COMFYUI_PYTHON in the environment.
# FOLDER, on a volume, gets custom_nodes/ and a virtual environment venv/ on top of ComfyUI's own, which does not change:
# venv/ gets only those requirements of the nodes that ComfyUI's environment lacks. A second start has nothing to do.
set -euo pipefail

list="$1" folder="$2"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -r "$list" ]] || {
    echo "$list cannot be read" >&2
    exit 66
}
mkdir -p "$folder/custom_nodes"
"$here/install_nodes.sh" "$list" "$folder/custom_nodes" "$folder/requirements.list"

below="$("${COMFYUI_PYTHON:?}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
stamp="$below $("$COMFYUI_PYTHON" -VV) $(sha256sum <"$list")"
if [[ "$(cat "$folder/venv/stamp" 2>/dev/null || true)" == "$stamp" ]]; then
    exit 0
fi
rm -rf "$folder/venv"
"$COMFYUI_PYTHON" -m venv --without-pip "$folder/venv"
python="$folder/venv/bin/python"
echo "import site; site.addsitedir('$below')" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
# All nodes must use the torch with which the image was built.
held=()
torch="$("$COMFYUI_PYTHON" -c 'import sys; print(sys.prefix)')/torch.txt"
if [[ -f "$torch" ]]; then held=(--constraint "$torch"); fi
while read -r file; do
    # pip, not uv, because pip sees the packages of ComfyUI's environment.
    "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "${held[@]}" --requirement "$file"
done <"$folder/requirements.list"
echo "$stamp" >"$folder/venv/stamp"
