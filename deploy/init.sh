#!/bin/bash
# PID 1 of the container: starts the command (supervisord), passes signals on, reaps orphans, and ends with its status;
# but with 70 if supervisor_events.py left its mark, because supervisord itself ends with 0 even if its programs failed.
set -euo pipefail

mark="${RUN_DIR:?}/failed"
rm -f "$mark"

# supervisord opens /dev/fd/1 again for each program. With the output of some container runtimes only root may do that,
# so this pipe replaces it. The pipe's reader ignores the signals, so that the last lines come through.
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
    # A signal that was passed on ends `wait` early, while the child still runs.
    kill -0 "$child" 2>/dev/null || break
done

# Children of a program may still hold the pipe open; they end with the container.
for _ in {1..20}; do
    kill -0 "$logger" 2>/dev/null || break
    sleep 0.1
done

if [[ -f "$mark" ]]; then
    echo "init | $(<"$mark"): ending with 70 so that the container is replaced" >&2
    exit 70
fi
exit "$status"
