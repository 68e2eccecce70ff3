#!/bin/bash
# Clone the custom nodes of a list at their commits: install_nodes.sh LIST CUSTOM_NODES_DIR REQUIREMENTS_OUT
# Writes the paths of their requirements files, one a line, to REQUIREMENTS_OUT.
set -euo pipefail

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
    echo "$name at $commit" >&2
    git init --quiet "$target/$name"
    git -C "$target/$name" fetch --quiet --depth 1 "$address" "$commit"
    git -C "$target/$name" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
    git -C "$target/$name" submodule --quiet update --init --depth 1
    rm -rf "$target/$name/.git"
    if [[ -f "$target/$name/requirements.txt" ]]; then
        printf '%s\n' "$target/$name/requirements.txt" >>"$requirements"
    fi
done <"$list"
