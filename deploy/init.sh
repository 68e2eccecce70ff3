#!/bin/bash
# PID 1 of the container: starts the command (supervisord), hands signals on, reaps orphans, and ends as it ended; but
# with 70 when supervisor_events.py left its mark, since supervisord itself ends with 0 whatever became of its programs.
set -euo pipefail

mark="${RUN_DIR:?}/failed"
rm -f "$mark"

"$@" &
child=$!
for name in TERM INT QUIT HUP; do
    # shellcheck disable=SC2064  # both are meant to be expanded now
    trap "kill -s $name $child 2>/dev/null || true" "$name"
done

status=0
while :; do
    wait "$child" && status=0 || status=$?
    # A signal that was handed on ends `wait` early; then the child is still there.
    kill -0 "$child" 2>/dev/null || break
done

if [[ -f "$mark" ]]; then
    echo "init | $(<"$mark"): ending with 70 so that the container is replaced" >&2
    exit 70
fi
exit "$status"
