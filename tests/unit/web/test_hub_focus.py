"""`Focus`: one websocket hears of one prompt after the other, even if several servers send events at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.web.comfyui.hub.focus import AsItComes, Focus, Narration
from comfyui.web.comfyui.hub.frames import ENDS, Frame, Kind, done

PROMPTS = ("a", "b", "c")
_ALWAYS_TOLD = frozenset({Kind.EXECUTED, Kind.PICTURE})


def frame(kind: Kind, prompt_id: str, node: str | None = None) -> Frame:
    return Frame(kind, f"{kind.name} {prompt_id} {node}".encode(), prompt_id, node)


def names(frames: list[Frame]) -> list[str]:
    return [f"{one.kind.name} {one.prompt_id}" + (f" {one.node}" if one.node else "") for one in frames]


class World:
    """Servers that run prompts, and a journal that records their ends a while later.

    Attributes:
        told: all frames that were sent to the socket.
    """

    def __init__(self, narration: Narration) -> None:
        self.narration = narration
        self.told: list[Frame] = []
        self.heard: dict[str, list[Frame]] = {}
        self.running: list[str] = []
        self.closing: list[str] = []
        self.ended: list[str] = []

    def tell(self, frames: list[Frame]) -> None:
        self.told += frames

    def hear(self, one: Frame) -> None:
        assert one.prompt_id is not None
        self.heard.setdefault(one.prompt_id, []).append(one)
        self.tell(self.narration.heard(one))

    def start(self, prompt_id: str) -> None:
        if prompt_id in self.running + self.closing + self.ended:
            return
        self.running.append(prompt_id)
        self.heard.pop(prompt_id, None)
        self.hear(frame(Kind.START, prompt_id))

    def step(self, prompt_id: str, kind: Kind, node: str) -> None:
        if prompt_id in self.running:
            self.hear(frame(kind, prompt_id, node))
        else:
            # The frame comes late, or the prompt began before the socket was opened.
            self.tell(self.narration.heard(frame(kind, prompt_id, node)))

    def finish(self, prompt_id: str, kind: Kind) -> None:
        """A server reports the end of the prompt."""
        if prompt_id in self.running:
            self.running.remove(prompt_id)
            self.closing.append(prompt_id)
            self.hear(frame(kind, prompt_id))

    def again(self, prompt_id: str) -> None:
        """The prompt is tried again, after an end that allows it or after the death of its server."""
        if prompt_id in self.running + self.closing:
            self.running = [one for one in self.running if one != prompt_id]
            self.closing = [one for one in self.closing if one != prompt_id]
            self.start(prompt_id)

    def write(self, prompt_id: str) -> None:
        """The journal records the end of a prompt, whether it ran or not."""
        if prompt_id in self.ended:
            return
        was_running = prompt_id in self.running + self.closing
        for some in (self.running, self.closing):
            if prompt_id in some:
                some.remove(prompt_id)
        self.ended.append(prompt_id)
        entry = entry_of(self.heard.get(prompt_id, [])) if self.narration.lacks(prompt_id, succeeded=True) else []
        self.tell(self.narration.ended(prompt_id, done(prompt_id), entry if was_running else []))


def entry_of(heard: list[Frame]) -> list[Frame]:
    """The prompt's frames as ComfyUI's history has them: each output once."""
    outputs = {one.node: one for one in heard if one.kind is Kind.EXECUTED}
    return [heard[0], *outputs.values(), frame(Kind.SUCCESS, heard[0].prompt_id or "")] if heard else []


_ids = st.sampled_from(PROMPTS)
_kinds = st.sampled_from(
    [Kind.CACHED, Kind.EXECUTING, Kind.STATE, Kind.PROGRESS, Kind.PREVIEW, Kind.PICTURE, Kind.EXECUTED]
)
_nodes = st.sampled_from(["1", "2", "3"])
Happening = Callable[[World], None]
_happenings: st.SearchStrategy[Happening] = st.one_of(
    _ids.map(lambda one: lambda world: world.start(one)),
    st.tuples(_ids, _kinds, _nodes).map(lambda what: lambda world: world.step(*what)),
    st.tuples(_ids, _kinds, _nodes).map(lambda what: lambda world: world.step(*what)),
    st.tuples(_ids, st.sampled_from([Kind.SUCCESS, Kind.FAILURE])).map(lambda what: lambda world: world.finish(*what)),
    _ids.map(lambda one: lambda world: world.write(one)),
    _ids.map(lambda one: lambda world: world.again(one)),
)


# In shorter lists, two prompts rarely run at the same time.
_WORLDS = st.lists(_happenings, min_size=12, max_size=80)


@given(_WORLDS)
def test_a_socket_hears_of_one_prompt_at_a_time(happenings: list[Happening]) -> None:
    """For ComfyUI's web frontend, a start makes a prompt the active one, and `executing` null ends it."""
    world = World(Focus())
    for happening in happenings:
        happening(world)
    active: str | None = None
    seen: set[str | None] = set()
    ended: list[str | None] = []
    for one in world.told:
        if one.kind is Kind.START:
            # A prompt that becomes active again is named by a start before any other frame.
            active = one.prompt_id
            assert active not in ended
        elif one.kind is Kind.DONE:
            assert one.prompt_id == active or one.prompt_id not in seen, (
                "only a prompt that never ran ends without a start"
            )
            active = None
            ended.append(one.prompt_id)
        else:
            assert one.prompt_id == active
        seen.add(one.prompt_id)
    # Each end is sent once, not before the journal has it, and in the journal's order.
    assert ended == world.ended


@given(_WORLDS)
def test_no_lasting_frame_is_lost_and_their_order_is_kept(happenings: list[Happening]) -> None:
    world = World(Focus())
    for happening in happenings:
        happening(world)
    for prompt_id in world.ended:
        heard = world.heard.get(prompt_id, [])
        stays = [one for one in heard if one.kind in _ALWAYS_TOLD]
        told = [one for one in world.told if one.prompt_id == prompt_id and one in stays]
        assert told == stays, "each frame is sent once, in the server's order"
        ends = [one for one in heard if one.kind in ENDS]
        if ends and ends[-1].kind is Kind.SUCCESS:
            (before,) = [
                world.told[place - 1]
                for place, one in enumerate(world.told)
                if one.kind is Kind.DONE and one.prompt_id == prompt_id
            ]
            assert (before.kind, before.prompt_id) == (Kind.SUCCESS, prompt_id)


@given(_WORLDS)
def test_a_picture_follows_the_executing_frame_of_its_node(happenings: list[Happening]) -> None:
    world = World(Focus())
    for happening in happenings:
        happening(world)
    before: dict[Frame, Frame | None] = {}
    for heard in world.heard.values():
        executing: Frame | None = None
        for one in heard:
            executing = one if one.kind is Kind.EXECUTING else executing
            before[one] = executing
    last: Frame | None = None
    for one in world.told:
        if one.kind in {Kind.START, Kind.EXECUTING}:
            last = one if one.kind is Kind.EXECUTING else None
        elif one.kind is Kind.PICTURE and one in before:
            assert last is before[one]


@given(_WORLDS)
def test_without_a_focus_each_frame_is_sent_once_as_it_comes(happenings: list[Happening]) -> None:
    world = World(AsItComes())
    for happening in happenings:
        happening(world)
    told = [one for one in world.told if one.kind is not Kind.DONE]
    assert [one.prompt_id for one in world.told if one.kind is Kind.DONE] == world.ended
    for heard in world.heard.values():
        assert [one for one in told if one in heard] == heard


def narrated(*happenings: Happening) -> list[str]:
    world = World(Focus())
    for happening in happenings:
        happening(world)
    return names(world.told)


def test_prompts_one_after_the_other_look_as_with_a_single_comfyui() -> None:
    """The journal records the end of the first prompt only after the second one has run."""
    assert narrated(
        lambda world: world.start("a"),
        lambda world: world.step("a", Kind.EXECUTED, "1"),
        lambda world: world.finish("a", Kind.SUCCESS),
        lambda world: world.start("b"),
        lambda world: world.step("b", Kind.EXECUTING, "1"),
        lambda world: world.step("b", Kind.PROGRESS, "1"),
        lambda world: world.finish("b", Kind.SUCCESS),
        lambda world: world.write("a"),
        lambda world: world.write("b"),
    ) == [
        *("START a", "EXECUTED a 1", "SUCCESS a", "DONE a"),
        *("START b", "EXECUTING b 1", "PROGRESS b 1", "SUCCESS b", "DONE b"),
    ]


def test_a_prompt_in_focus_shows_its_progress_after_another_prompt_ended() -> None:
    assert narrated(
        lambda world: world.start("a"),
        lambda world: world.step("a", Kind.EXECUTING, "1"),
        lambda world: world.start("b"),
        lambda world: world.step("b", Kind.EXECUTING, "2"),
        lambda world: world.step("b", Kind.PROGRESS, "2"),
        lambda world: world.step("a", Kind.STATE, "1"),
        lambda world: world.step("b", Kind.PICTURE, "2"),
        lambda world: world.step("b", Kind.EXECUTED, "3"),
        lambda world: world.finish("b", Kind.SUCCESS),
        lambda world: world.write("b"),
        lambda world: world.step("a", Kind.PROGRESS, "1"),
    ) == [
        *("START a", "EXECUTING a 1", "STATE a 1"),
        *("START b", "EXECUTING b 2", "PICTURE b 2", "EXECUTED b 3", "SUCCESS b", "DONE b"),
        *("START a", "EXECUTING a 1", "STATE a 1", "PROGRESS a 1"),
    ]


def test_the_next_started_prompt_gets_the_focus_with_its_kept_frames() -> None:
    assert narrated(
        lambda world: world.start("a"),
        lambda world: world.start("b"),
        lambda world: world.step("b", Kind.EXECUTED, "1"),
        lambda world: world.step("b", Kind.EXECUTING, "2"),
        lambda world: world.step("b", Kind.PROGRESS, "2"),
        lambda world: world.finish("a", Kind.FAILURE),
        lambda world: world.write("a"),
        lambda world: world.step("b", Kind.PROGRESS, "2"),
    ) == ["START a", "SUCCESS a", "DONE a", "START b", "EXECUTED b 1", "EXECUTING b 2", "PROGRESS b 2"]


def test_a_prompt_that_never_ran_ends_with_one_frame_and_the_focus_returns() -> None:
    assert narrated(
        lambda world: world.start("a"),
        lambda world: world.write("b"),
        lambda world: world.step("a", Kind.PROGRESS, "1"),
    ) == ["START a", "DONE b", "START a", "PROGRESS a 1"]


def test_a_failed_try_is_not_sent_as_an_end() -> None:
    assert narrated(
        lambda world: world.start("a"),
        lambda world: world.finish("a", Kind.FAILURE),
        lambda world: world.again("a"),
        lambda world: world.finish("a", Kind.SUCCESS),
        lambda world: world.write("a"),
    ) == ["START a", "START a", "SUCCESS a", "DONE a"]


def test_a_late_client_gets_the_present_state_and_missed_outputs_at_the_end() -> None:
    focus = Focus()
    told = focus.joined([frame(Kind.START, "a"), frame(Kind.EXECUTING, "a", "2"), frame(Kind.STATE, "a")])
    told += focus.heard(frame(Kind.EXECUTED, "a", "2"))
    told += focus.heard(frame(Kind.SUCCESS, "a"))
    assert focus.lacks("a", succeeded=True)
    heard = [frame(Kind.START, "a"), frame(Kind.EXECUTED, "a", "1"), frame(Kind.EXECUTED, "a", "2")]
    told += focus.ended("a", done("a"), entry_of(heard))
    assert names(told) == [
        *("START a", "EXECUTING a 2", "STATE a", "EXECUTED a 2"),
        *("EXECUTED a 1", "SUCCESS a", "DONE a"),
    ]


@pytest.mark.parametrize("kind", [Kind.SUCCESS, Kind.FAILURE])
def test_the_journals_end_takes_precedence_over_the_servers_end(kind: Kind) -> None:
    """For example, its files could not be stored, or it was cancelled at that moment."""
    focus = Focus()
    focus.heard(frame(Kind.START, "a"))
    focus.heard(frame(kind, "a"))
    other = next(iter(ENDS - {kind}))
    assert focus.lacks("a", succeeded=kind is not Kind.SUCCESS)
    told = focus.ended("a", done("a"), [frame(Kind.START, "a"), frame(other, "a")])
    assert names(told) == [f"{other.name} a", "DONE a"]


def test_a_prompt_that_waits_for_the_focus_keeps_only_lasting_frames() -> None:
    world = World(Focus())
    world.start("a")
    world.finish("a", Kind.SUCCESS)
    world.start("b")
    world.step("b", Kind.EXECUTING, "1")
    for _ in range(3000):
        world.step("b", Kind.PROGRESS, "1")
    world.step("b", Kind.PICTURE, "1")
    world.step("b", Kind.EXECUTED, "1")
    assert sum(1 for _ in world.narration.kept()) < 1000
    world.write("a")
    assert names(world.told)[-4:] == ["EXECUTING b 1", "PICTURE b 1", "EXECUTED b 1", "EXECUTING b 1"]
