"""`NodeTimes`: how long each node of one prompt ran, measured by the arrival of ComfyUI's frames.

A node begins with its `executing` frame, and ends with the first `progress_state` frame that calls it finished. Others
may begin meanwhile: a node can wait for inputs that it requests late, for a service, or for nodes that replace it. A
ComfyUI that sends no `progress_state` runs one node after the other; then the next `executing` is the end.

The frames are searched as bytes: they are many and grow with the workflow, and parsing them would cost more than
everything else that the gateway does for a prompt.
"""

from __future__ import annotations

import re

from comfyui import jsonio
from comfyui.exceptions import JSONError

# ComfyUI's form: a node that replaces another one has the other's id as its `display_node`.
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_EXECUTING = re.compile(rb'"node": ' + _TEXT + rb'(?:, "display_node": ' + _TEXT + rb")?")
_STATE = b'"state": "'
_FINISHED = (b"finished", b"error")
# Limits above which no times are kept: bytes of one frame, nodes that run at once, and all nodes.
_LONGEST_FRAME = 4096
_MOST_OPEN = 64
_MOST_NODES = 20_000


class NodeTimes:
    """The times of one prompt, in seconds on any clock that only grows."""

    __slots__ = ("_began", "_ended", "_left", "_newest", "_seconds", "_spoilt", "_started", "_tells_states")

    def __init__(self) -> None:
        self._spoilt = False
        self.started()
        self._started = False

    def started(self) -> None:
        """ComfyUI has begun to run the prompt: earlier frames were of a run that it lost."""
        self._started, self._ended, self._tells_states = True, False, False
        # For each running node: since when it runs, and since when another one has run beside it.
        self._began: dict[bytes, float] = {}
        self._left: dict[bytes, float] = {}
        self._newest: bytes | None = None
        self._seconds: dict[bytes, float] = {}

    def executing(self, frame: bytes, at: float) -> None:
        """A node begins. It may have begun before and waited for its inputs since."""
        if not self._going:
            return
        found = _EXECUTING.search(frame) if len(frame) <= _LONGEST_FRAME else None
        if found is None:
            self._spoilt = True
            return
        node, shown = found[1], found[2] or found[1]
        if not self._tells_states:
            if self._newest is not None:
                self._close(self._newest, at)
            node = shown
        elif node != shown:
            return  # its time counts for the node that it replaces, which runs until its replacements are done
        elif self._newest in self._began:
            self._left[self._newest] = at
        if node in self._began:
            self._add(node, self._left.get(node, at) - self._began[node])
            self._left.pop(node, None)
        self._began[node], self._newest = at, node
        self._spoilt = len(self._began) > _MOST_OPEN or len(self._seconds) > _MOST_NODES

    def states(self, frame: bytes, at: float) -> None:
        """A `progress_state` frame arrived: running nodes may have ended."""
        if not self._going:
            return
        self._tells_states = True
        for node in tuple(self._began):
            # The newest are last.
            place = frame.rfind(b'"' + node + b'": {')
            state = frame.find(_STATE, place) if place >= 0 else -1
            if state >= 0 and frame.startswith(_FINISHED, state + len(_STATE)):
                self._close(node, at)

    def ended(self, at: float) -> None:
        """No node runs any more."""
        if self._going:
            for node in tuple(self._began):
                self._close(node, at)
            self._ended = True

    def seconds(self) -> dict[str, float] | None:
        """Seconds by node that ran; None unless every frame from the prompt's start to its end was heard."""
        if not self._started or not self._ended or self._spoilt:
            return None
        try:
            return {_id_of(node): round(seconds, 4) for node, seconds in self._seconds.items()}
        except (JSONError, UnicodeDecodeError):
            return None

    @property
    def _going(self) -> bool:
        return self._started and not self._ended and not self._spoilt

    def _close(self, node: bytes, at: float) -> None:
        if (began := self._began.pop(node, None)) is not None:
            self._add(node, at - began)
        self._left.pop(node, None)

    def _add(self, node: bytes, seconds: float) -> None:
        self._seconds[node] = self._seconds.get(node, 0.0) + seconds


def _id_of(text: bytes) -> str:
    """The id between its quotes."""
    return str(jsonio.loads(b'"' + text + b'"')) if b"\\" in text else text.decode()
