"""ComfyUI's queue, history, jobs and uploads: one script against ComfyUI, and the gateway before one and three.

What is allowed to differ stands in the scripts (`tests.contract.same`), each with its reason.
"""

from __future__ import annotations

import pytest

from comfyui.engine import NEW_VERSION
from tests.contract.same import files, histories, infos, jobs, pages, prompts, queues, sockets, uploads, userdata
from tests.support.same_answers import Case, differences
from tests.support.same_ways import Sides

pytestmark = pytest.mark.asyncio(loop_scope="module")


_ALL = (
    *prompts.CASES,
    *queues.CASES,
    *histories.CASES,
    *jobs.CASES,
    *infos.CASES,
    *uploads.CASES,
    *files.CASES,
    *userdata.CASES,
    *pages.CASES,
    *sockets.CASES,
)


@pytest.mark.parametrize("case", _ALL, ids=lambda case: case.__name__)
async def test_the_gateway_answers_as_comfyui(sides: Sides, case: Case) -> None:
    if sides.way.version != NEW_VERSION and case in jobs.CASES:
        return  # this ComfyUI has no job routes; the gateway has them all the same (fleet contract)
    theirs = await sides.of_comfyui(case)
    assert differences(theirs, await sides.of_the_gateway(case)) == {}
