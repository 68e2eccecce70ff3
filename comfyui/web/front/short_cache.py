"""A cache for functions of one text that a caller chooses: it keeps short texts only, so that its size is bounded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# Characters. Thousands of paths of 60 KB each took 160 MB that were never given back.
_SHORT = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")


def short_cache(maxsize: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A `functools.lru_cache` for a function whose last argument is a text; a long text is computed each time."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        cached = functools.lru_cache(maxsize)(function)

        @functools.wraps(function)
        def look_up(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            text = args[-1]
            if isinstance(text, str | bytes) and len(text) > _SHORT:
                return function(*args, **kwargs)
            return cached(*args, **kwargs)  # type: ignore[arg-type] # all that callers pass is hashable

        return look_up

    return decorate
