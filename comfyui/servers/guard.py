"""Runs a command that ends when our process ends, even by SIGKILL: ``python guard.py PARENT_PID GRACE_S COMMAND…``.

It is a separate program and imports nothing of ours. It leads the process group, starts the command in it, waits for it
and ends in the same way. When our process is gone, it stops the whole group: SIGTERM, then SIGKILL after the grace. It
learns of our end from the kernel (PR_SET_PDEATHSIG); on a system without that call there is only the group.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 127


def die_with_parent(number: int) -> None:
    """Lets the kernel send this process the signal when its parent is gone."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (OSError, AttributeError):
        return


def stop_group(grace_s: float) -> None:
    """Sends SIGTERM to the group, which this process itself only notes; SIGKILL to all of it after the grace."""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, max(grace_s, 0.001))
    os.killpg(0, signal.SIGTERM)


def run(command: list[str], guard: int) -> NoReturn:
    """Becomes the command; in the child."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(_CANNOT_START)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command that the operator chose
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
        os._exit(_CANNOT_START)


def end_as(status: int) -> NoReturn:
    """Ends as the child ended: with its exit status, or by its signal, which tells more."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core that matters is the child's
        except (ImportError, OSError, ValueError):
            pass
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def main(arguments: list[str]) -> NoReturn:
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    orphaned = False

    def on_orphaned(*_: object) -> None:
        nonlocal orphaned
        orphaned = True
        stop_group(grace_s)

    signal.signal(signal.SIGUSR1, on_orphaned)
    # A stop is sent to the whole group: the command obeys it, and this process waits for the command.
    signal.signal(signal.SIGTERM, lambda *_: None)
    die_with_parent(signal.SIGUSR1)
    if os.getppid() != parent:
        os._exit(_CANNOT_START)
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run(command, guard)
    _, status = os.waitpid(pid, 0)
    if orphaned:
        os.killpg(0, signal.SIGKILL)  # the processes that the command left behind, and this one
    end_as(status)


if __name__ == "__main__":
    main(sys.argv[1:])
