#!/bin/bash
# Clones the custom nodes of a list at their commits: install_nodes.sh LIST CUSTOM_NODES_DIR REQUIREMENTS_OUT
# Writes the paths of their requirements files to REQUIREMENTS_OUT, one in each line.
set -euo pipefail

# Clones into a folder beside the target and renames it at the end, so that an interrupted start leaves no partial node.
clone() {
    rm -rf "$3" "$3.part"
    git init --quiet "$3.part"
    git -C "$3.part" fetch --quiet --depth 1 "$1" "$2"
    git -C "$3.part" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
    git -C "$3.part" submodule --quiet update --init --depth 1
    rm -rf "$3.part/.git"
    echo "$2" >"$3.part/.commit"
    mv "$3.part" "$3"
}

list="$1" target="$2" requirements="$3"
: >"$requirements"
number=0
while read -r address commit rest; do
    number=$((number + 1))
    [[ -z "$address" || "$address" == \#* ]] && continue
    if [[ ! "$commit" =~ ^[0-9a-f]{40}$ || -n "$rest" ]]; then
        echo "$list:$number: expected an address and a commit of 40 hex digits, got: $address $commit $rest" >&2
        exit 64
    fi
    name="$(basename "$address" .git)"
    if [[ "$(cat "$target/$name/.commit" 2>/dev/null || true)" == "$commit" ]]; then
        echo "$name at $commit is installed already" >&2
    else
        echo "$name at $commit" >&2
        clone "$address" "$commit" "$target/$name"
    fi
    if [[ -f "$target/$name/requirements.txt" ]]; then
        printf '%s\n' "$target/$name/requirements.txt" >>"$requirements"
    fi
done <"$list"
