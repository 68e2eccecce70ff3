"""How the engine dies on request, as ComfyUI dies of a native fault, of a node that calls exit, or of one that hangs.

Only an engine in its own process may die: in the process of a test or a gateway, it would end that, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

CRASHES = ("segfault", "exit")
EXIT_STATUS = 1


def crash(how: str, config: Mapping[str, Any]) -> NoReturn:
    """Ends this process at once: by SIGSEGV, or with `status` as its exit status; writes `message` before, if any."""
    if "message" in config:
        print(config["message"], file=sys.stderr, flush=True)
    if how == "segfault":
        # Sent to this thread, whose process is over before the next line.
        signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
    os._exit(int(config.get("status", EXIT_STATUS)))
