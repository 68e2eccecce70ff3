"""Errors of the disk of `RUNPOD_DATA_DIR` when it cannot be written, and advice about them."""

from __future__ import annotations

import errno
import os

# The operator can mend these. Any other error concerns the one file: its name is too long, for example.
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def is_of_the_disk(error: OSError) -> bool:
    """Whether the same write may succeed later, when someone has mended the disk."""
    return error.errno in _OF_THE_DISK


def reason_of(error: OSError) -> str:
    """The reason in the system's words, without a path."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def advice(problem: str, setting: str = "RUNPOD_DATA_DIR") -> str:
    """`problem` with the setting that it concerns, and what to do."""
    return f"{setting}: {problem}. Check that its disk has room and that the gateway may write there"
