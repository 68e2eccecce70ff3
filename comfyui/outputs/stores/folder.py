"""Writes a file into a folder so that it appears there complete or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def draft_of(target: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is at `target` when the block ends, and nowhere when it raises. Blocks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its target, so that moving it there is one step.
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-", delete=False) as file:
        draft = Path(file.name)
        try:
            yield file
            file.close()
            # A temporary file is only for its owner; this one will be served.
            draft.chmod(0o644)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
