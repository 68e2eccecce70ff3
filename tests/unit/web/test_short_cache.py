"""Results for callers' texts are cached only if the text is short."""

from __future__ import annotations

from comfyui.web.front import paths
from comfyui.web.front.short_cache import short_cache


def test_the_result_for_a_short_text_is_cached_and_for_a_long_text_is_not() -> None:
    asked: list[str] = []

    @short_cache(8)
    def size(text: str) -> int:
        asked.append(text)
        return len(text)

    assert [size("a"), size("a"), size("b" * 1000), size("b" * 1000)] == [1, 1, 1000, 1000]
    assert asked == ["a", "b" * 1000, "b" * 1000]


def test_long_paths_are_not_cached() -> None:
    kept = paths.normalised.__closure__
    assert kept is not None
    cached = next(cell.cell_contents for cell in kept if hasattr(cell.cell_contents, "cache_info"))
    before = cached.cache_info().currsize
    for number in range(50):
        assert paths.normalised(f"/x{number}/" + "%41" * 20_000) is not None
    assert cached.cache_info().currsize == before
