"""`Focus`: the frames of a client's prompts for one websocket, arranged as if one prompt ran after the other. Pure.

ComfyUI runs one prompt at a time, and its clients rely on that: the web frontend has one active prompt, from
`execution_start` to `executing` with node null. So one prompt has the *focus*: the client's first that started. Its
frames are passed on at once. For other prompts that run meanwhile, only lasting frames are kept, and sent together when
the prompt ends; then the focus is named again. An end is sent when the history has it, even if the server sent it
earlier.

`AsItComes` is for sockets that want everything at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from comfyui.web.comfyui.hub.frames import ENDS, Frame, Kind

# Frames of a prompt that ran while the end of the one before it was being written down.
_MOST_KEPT = 2000
_STAYS = frozenset({Kind.CACHED, Kind.EXECUTED, Kind.PICTURE})


class _Prompt:
    """A prompt that has started, and whose end was not told."""

    __slots__ = ("end", "executed", "executing", "is_whole", "keeps_all", "kept", "start", "state", "under")

    def __init__(self, start: Frame, *, keeps_all: bool) -> None:
        self.start = start
        self.is_whole = True
        """Whether its start was sent in time, so that none of its frames was missed, as far as is known."""
        self.executing: Frame | None = None
        self.state: Frame | None = None
        self.end: Frame | None = None
        """The server's frames about its end, which are not sent yet."""
        self.executed: set[str | None] = set()
        self.keeps_all = keeps_all
        self.kept: list[Frame] = []
        self.under: Frame | None = None
        """The `executing` that was kept last."""

    def hear(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.EXECUTING:
                self.executing = frame
            case Kind.STATE:
                self.state = frame
            case Kind.EXECUTED:
                self.executed.add(frame.node)
            case Kind.SUCCESS | Kind.FAILURE:
                self.end = frame

    def missed(self, entry: Sequence[Frame]) -> list[Frame]:
        """Frames for outputs in the history entry that no server has sent."""
        return [frame for frame in entry if frame.kind is Kind.EXECUTED and frame.node not in self.executed]

    def keep(self, frame: Frame) -> None:
        if self.keeps_all:
            self.kept.append(frame)
            if len(self.kept) > _MOST_KEPT:
                self._keep_what_stays()
        elif frame.kind in _STAYS:
            if frame.kind is Kind.PICTURE and self.executing is not None and self.executing is not self.under:
                self.kept.append(self.executing)
                self.under = self.executing
            self.kept.append(frame)

    def _keep_what_stays(self) -> None:
        kept, self.kept, self.keeps_all = self.kept, [], False
        executing = self.executing
        for frame in kept:
            if frame.kind is Kind.EXECUTING:
                self.executing = frame
            else:
                self.keep(frame)
        self.executing = executing

    def now(self) -> list[Frame]:
        """Frames for its present state."""
        return [frame for frame in (self.executing, self.state) if frame is not None]


class Narration:
    """Turns the servers' frames into those of one websocket. Synchronous: frames in, frames out."""

    def __init__(self) -> None:
        self._prompts: dict[str, _Prompt] = {}

    def heard(self, frame: Frame) -> list[Frame]:
        """A server sent this frame. Returns the frames to send now."""
        raise NotImplementedError

    def ended(self, prompt_id: str, done: Frame, entry: Sequence[Frame] = ()) -> list[Frame]:
        """The prompt has ended, and its history entry can be read. Returns the frames to send now.

        Args:
            entry: the frames of the entry, if the narration `lacks` some: from `execution_start` to the last one before
                `done`.
        """
        raise NotImplementedError

    def knows(self, prompt_id: str) -> bool:
        """Whether the prompt has started, and its end was not sent."""
        return prompt_id in self._prompts

    def kept(self) -> Iterator[Frame]:
        """The frames that wait here."""
        for prompt in self._prompts.values():
            yield from prompt.kept

    def joined(self, frames: Iterable[Frame]) -> list[Frame]:
        """A prompt ran before the socket existed: its start, and its state. Returns the frames to send now."""
        told: list[Frame] = []
        for frame in frames:
            told += self.heard(frame)
            if frame.prompt_id in self._prompts:
                self._prompts[frame.prompt_id].is_whole = False
        return told

    def lacks(self, prompt_id: str, *, succeeded: bool) -> bool:
        """Whether `ended` needs the frames of the history entry."""
        prompt = self._prompts.get(prompt_id)
        if prompt is None or not prompt.is_whole or prompt.end is None:
            return True
        return (prompt.end.kind is Kind.SUCCESS) is not succeeded


class Focus(Narration):
    """One prompt after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._focus: str | None = None

    def heard(self, frame: Frame) -> list[Frame]:
        prompt_id = frame.prompt_id
        if frame.kind is Kind.OTHER or prompt_id is None:
            return [frame]
        if frame.kind is Kind.START:
            return self._started(prompt_id, frame)
        prompt = self._prompts.get(prompt_id)
        if prompt is None:
            return []  # its end has its outputs
        prompt.hear(frame)
        if frame.kind in ENDS:
            return []
        if prompt_id == self._focus:
            return [frame]
        prompt.keep(frame)
        return []

    def _started(self, prompt_id: str, start: Frame) -> list[Frame]:
        # If all earlier prompts have ended, and only their ends are still to be sent, it gets the focus in a moment.
        others = (prompt for one, prompt in self._prompts.items() if one != prompt_id)
        # Another attempt of the same prompt makes its outputs again.
        self._prompts[prompt_id] = _Prompt(start, keeps_all=all(other.end is not None for other in others))
        if self._focus is None:
            self._focus = prompt_id
        return [start] if prompt_id == self._focus else []

    def ended(self, prompt_id: str, done: Frame, entry: Sequence[Frame] = ()) -> list[Frame]:
        prompt = self._prompts.pop(prompt_id, None)
        if prompt is None:
            return [*entry, done, *self._named_again()]
        end = next((frame for frame in entry if frame.kind in ENDS), prompt.end)
        last = [*prompt.missed(entry), *([] if end is None else [end]), done]
        if prompt_id == self._focus:
            self._focus = next(iter(self._prompts), None)
            return [*last, *self._taken_up()]
        return [prompt.start, *prompt.kept, *last, *self._named_again()]

    def _named_again(self) -> list[Frame]:
        if self._focus is None:
            return []
        prompt = self._prompts[self._focus]
        return [prompt.start, *prompt.now()]

    def _taken_up(self) -> list[Frame]:
        """The prompt that has the focus now, with its kept frames."""
        if self._focus is None:
            return []
        prompt = self._prompts[self._focus]
        kept, prompt.kept = prompt.kept, []
        return [prompt.start, *kept, *([] if prompt.keeps_all else prompt.now())]


class AsItComes(Narration):
    """Everything at once: several prompts may run at the same time."""

    def heard(self, frame: Frame) -> list[Frame]:
        prompt_id = frame.prompt_id
        if prompt_id is not None and frame.kind is Kind.START:
            self._prompts[prompt_id] = _Prompt(frame, keeps_all=False)
        elif prompt_id is not None and (prompt := self._prompts.get(prompt_id)) is not None:
            prompt.hear(frame)
        return [frame]

    def ended(self, prompt_id: str, done: Frame, entry: Sequence[Frame] = ()) -> list[Frame]:
        prompt = self._prompts.pop(prompt_id, None)
        if prompt is None:
            return [*entry, done]
        end = next((frame for frame in entry if frame.kind in ENDS), None)
        was_told = end is None or (prompt.end is not None and prompt.end.kind is end.kind)
        return [*prompt.missed(entry), *([] if was_told or end is None else [end]), done]
