"""Memory in use is put into huge pages if the kernel has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui.web.server.huge_pages import use_huge_pages

_SMAPS = Path("/proc/self/smaps_rollup")


def in_huge_pages() -> int:
    """The bytes of this process that are in huge pages."""
    line = next(line for line in _SMAPS.read_text().splitlines() if line.startswith("AnonHugePages:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not _SMAPS.exists(), reason="only Linux reports the bytes in huge pages")
def test_memory_in_use_is_moved_to_huge_pages() -> None:
    content = bytes(range(256)) * (1 << 16)
    held = bytearray(content)
    before = in_huge_pages()
    made = use_huge_pages()
    if not made:
        pytest.skip("this kernel makes no huge pages when it is asked")
    assert in_huge_pages() > before
    assert held == content


@pytest.mark.parametrize("said", ["", "no number", "536870912"])
def test_without_huge_pages_of_the_usual_size_nothing_happens(tmp_path: Path, said: str) -> None:
    size_file = tmp_path / "size"
    assert use_huge_pages(size_file) == 0
    size_file.write_text(said)
    assert use_huge_pages(size_file) == 0
