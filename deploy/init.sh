#!/bin/bash
# PID 1 of the container: starts the command (supervisord), hands signals on, reaps orphans, and ends as it ended; but
# with 70 when supervisor_events.py left its mark, since supervisord itself ends with 0 whatever became of its programs.
set -euo pipefail

mark="${RUN_DIR:?}/failed"
rm -f "$mark"

# supervisord opens /dev/fd/1 once more for each program, which a user other than root may not do with every runtime's
# output. This pipe is ours. It outlives the signals, so that the last lines come through.
exec {log}> >(
    trap '' TERM INT QUIT HUP
    exec cat
)
logger=$!
"$@" >&"$log" 2>&1 {log}>&- &
child=$!
exec {log}>&-
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

# What is left of a program's children may hold the pipe open; they go with the container.
for _ in {1..20}; do
    kill -0 "$logger" 2>/dev/null || break
    sleep 0.1
done

if [[ -f "$mark" ]]; then
    echo "init | $(<"$mark"): ending with 70 so that the container is replaced" >&2
    exit 70
fi
exit "$status"
