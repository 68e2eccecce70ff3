"""ComfyUI's routes and frames: each script runs against ComfyUI itself, and against the gateway with one and three.

The scripts (`tests.contract.same`) name the allowed differences with their reasons; docs/side-by-side.md counts them.
"""

from __future__ import annotations

import pytest

from tests.contract.same.page import ALL, PAGE, cell_of, is_played, name_of, read_page
from tests.support.same_answers import Case, differences
from tests.support.same_ways import REAL, WAYS, Sides

_SHOWN = read_page(PAGE.read_text())


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.__module__.rpartition('.')[2]}-{case.__name__}")
async def test_the_gateway_answers_as_comfyui_does(sides: Sides, case: Case) -> None:
    if not is_played(case, sides.way):
        return  # this ComfyUI has no job routes, but the gateway has them (fleet contract)
    theirs, ours = await sides.of_comfyui(case), await sides.of_the_gateway(case)
    assert differences(theirs, ours) == {}
    if sides.way.version != REAL:
        assert cell_of(ours) == _SHOWN.cells[name_of(case), str(sides.way)], (
            "run make side-by-side to write the page again"
        )


def test_the_page_lists_every_script_and_the_right_totals() -> None:
    wanted = {(name_of(case), str(way)) for case in ALL for way in WAYS if is_played(case, way)}
    assert _SHOWN.cells.keys() == wanted
    cells = _SHOWN.cells.values()
    assert _SHOWN.other == sum(cell.other for cell in cells)
    assert _SHOWN.same == sum(cell.answers for cell in cells) - _SHOWN.other
    assert _SHOWN.unexplained == 0
