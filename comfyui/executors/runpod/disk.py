"""What the disk of `RUNPOD_DATA_DIR` says when it cannot be written, and what can be done about that."""

from __future__ import annotations

import errno
import os

# Whoever runs the gateway can mend these. Any other is about the one file: its name is too long, say.
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def is_of_the_disk(error: OSError) -> bool:
    """Whether the same write may succeed later, when somebody has seen to the disk."""
    return error.errno in _OF_THE_DISK


def reason_of(error: OSError) -> str:
    """In the system's words, without a path."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def advice(problem: str, setting: str = "RUNPOD_DATA_DIR") -> str:
    """`problem` with the setting that it is about, and what to do."""
    return f"{setting}: {problem}. See that its disk has room, and that the gateway may write there"
