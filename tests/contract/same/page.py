"""Writes and reads docs/side-by-side.md: how many answers each script compares on each way, and why some differ.

python -m tests.contract.same.page docs/side-by-side.md
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from comfyui.engine import NEW_VERSION
from tests.contract.same import files, histories, infos, jobs, pages, prompts, queues, sockets, uploads, userdata
from tests.support.same_answers import Case, Step, differences
from tests.support.same_ways import WAYS, Bare, Way, open_way

MODULES = (prompts, queues, histories, jobs, sockets, files, uploads, infos, userdata, pages)
ALL: tuple[Case, ...] = tuple(case for module in MODULES for case in module.CASES)
PAGE = Path(__file__).parents[3] / "docs/side-by-side.md"
_NOT_ASKED = "–"
_CELL = re.compile(r"(\d+)(?:/(\d+) \(([\d, ]+)\))?")
_TOTAL = re.compile(r"\*\*(\d+) answers are the same, (\d+) differ for a reason, and (\d+) without one\.\*\*")
_REASON = re.compile(r"(\d+)\. (.+)")
_HEAD = """\
# Side by side: one ComfyUI, and the gateway in its place

`make side-by-side` writes this page. It sends the requests of each script below to a ComfyUI without a gateway, then
to a gateway in front of one ComfyUI or of three with their own folders, and compares the status, content type, body and
frames of each answer. A test (`tests/contract/test_same_answers.py`) repeats this and compares its counts with this
page; with `COMFYUI_TEST_URL` it uses a real ComfyUI as well. The comparison leaves out what differs from run to run
(ids, times, free memory) and the prompt's id in names of output files ([why](drop-in.md#names-of-output-files)).

With one server and no keys, the gateway relays every answer byte for byte; `tests/contract/test_relay_real.py` tests
that.

`12/3 (2, 5)` means 12 answers, of which 3 differ for the reasons 2 and 5. `–` means that this version of ComfyUI does
not have what the script needs.

"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The counts of one script on one way.

    Attributes:
        answers: number of answers that are compared.
        other: number of these that differ.
        reasons: why they differ.
    """

    answers: int
    other: int
    reasons: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """The content of the page.

    Attributes:
        cells: by the names of script and way.
        same, other, unexplained: numbers of answers that are equal, differ for a reason, and differ without one.
    """

    cells: Mapping[tuple[str, str], Cell]
    same: int
    other: int
    unexplained: int


def is_played(case: Case, way: Way) -> bool:
    """Whether this way's version of ComfyUI has what the script needs."""
    return way.version == NEW_VERSION or case not in jobs.CASES


def cell_of(steps: list[Step]) -> Cell:
    """Counts the gateway's answers."""
    others = [step.instead for step in steps if step.instead is not None]
    return Cell(len(steps), len(others), frozenset(plain_reason(one.why) for one in others))


def plain_reason(why: str) -> str:
    """The reason without the reference in front of it."""
    text = why.partition(": ")[2] or why
    return text[:1].upper() + text[1:]


def name_of(case: Case) -> str:
    """The name of a script on the page."""
    return f"{case.__module__.rpartition('.')[2]}: {case.__name__.replace('_', ' ')}"


def read_page(text: str) -> Shown:
    """Parses what `page_of` wrote."""
    reasons = dict(_REASON.findall(text))
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    ways, cells = rows[0][1:], {}
    for name, *shown in rows[2:]:
        for way, one in zip(ways, shown, strict=True):
            if one != _NOT_ASKED and (match := _CELL.fullmatch(one)):
                why = frozenset(reasons[number] for number in (match[3] or "").split(", ") if number)
                cells[name, way] = Cell(int(match[1]), int(match[2] or 0), why)
    total = _TOTAL.search(text)
    assert total is not None
    return Shown(cells, int(total[1]), int(total[2]), int(total[3]))


def page_of(cells: Mapping[tuple[str, str], Cell], unexplained: int) -> str:
    """The text of the page. `unexplained`: the number of answers that differ without a reason."""
    counted = Counter(reason for cell in cells.values() for reason in sorted(cell.reasons))
    numbers = {reason: number for number, reason in enumerate(counted, start=1)}
    total, other = sum(cell.answers for cell in cells.values()), sum(cell.other for cell in cells.values())
    ways = [str(way) for way in WAYS]
    lines = [
        (
            f"**{total - other - unexplained} answers are the same, {other} differ for a reason, "
            f"and {unexplained} without one.**"
        ),
        "",
        f"| script | {' | '.join(ways)} |",
        f"| --- |{' --- |' * len(ways)}",
    ]
    for name in dict.fromkeys(name for name, _ in cells):
        shown = " | ".join(_text(cells.get((name, way)), numbers) for way in ways)
        lines += [f"| {name} | {shown} |"]
    lines += [
        "",
        "The name of a way has ComfyUI's version, the number of servers, the role of the key, and the path prefix.",
        "",
    ]
    lines += ["## Reasons", "", *(f"{number}. {reason}" for reason, number in numbers.items())]
    return _HEAD + "\n".join(lines) + "\n"


def _text(cell: Cell | None, numbers: Mapping[str, int]) -> str:
    if cell is None:
        return _NOT_ASKED
    if not cell.other:
        return str(cell.answers)
    return (
        f"{cell.answers}/{cell.other} ({', '.join(str(one) for one in sorted(numbers[why] for why in cell.reasons))})"
    )


async def _written(path: Path) -> None:
    cells: dict[tuple[str, str], Cell] = {}
    unexplained = 0
    async with AsyncExitStack() as stack:
        bare = Bare(stack)
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                async with open_way(bare, way, Path(folder)) as sides:
                    for case in ALL:
                        if is_played(case, way):
                            theirs, ours = await sides.of_comfyui(case), await sides.of_the_gateway(case)
                            cells[name_of(case), str(way)] = cell_of(ours)
                            unexplained += len(found := differences(theirs, ours))
                            for request, difference in found.items():
                                print(way, name_of(case), request, difference)
    # The page keeps the order of the scripts, also of those that not every way plays.
    names = [name_of(case) for case in ALL]
    path.write_text(page_of(dict(sorted(cells.items(), key=lambda item: names.index(item[0][0]))), unexplained))


if __name__ == "__main__":
    asyncio.run(_written(Path(sys.argv[1])))
