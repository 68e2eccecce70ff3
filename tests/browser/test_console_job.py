"""The console's page of one job in a browser: its new jobs, its workflow in ComfyUI's own page, live changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browsing import frontend_root
from tests.support.console import PATIENCE_MS, PHONE, Console, accessible, fits, open_console, tab_to
from tests.support.engine_workflows import txt2img
from tests.support.running import RunningGateway, invert_workflow, until

pytestmark = pytest.mark.timeout(180)

_TITLES = "window.app.graph.nodes.map(node => node.title).sort()"
_PREFIXES = "window.app.graph.nodes.filter(node => node.type === 'SaveImage').map(node => node.widgets[0].value)"


async def ended(gateway: RunningGateway, prompt: dict[str, Any], **fields: Any) -> str:
    """The id of an async job that has ended."""
    body = {"prompt": prompt, **fields}
    async with gateway.http.post("/prompt_sync", json=body, headers={"Prefer": "respond-async"}) as answer:
        prompt_id = str((await answer.json())["prompt_id"])

    async def state() -> bool:
        record = await gateway.handler.journal.get(prompt_id)
        return record is not None and record.state.is_end

    await until(state, bool)
    return prompt_id


async def test_a_graph_and_an_editor_s_workflow_open_in_comfyui() -> None:
    """Frontend 1.27.10; COMFYUI_TEST_FRONTEND names another one."""
    async with open_console(front_end_root=frontend_root()) as console:
        assert (await console.gateway.http.post("/settings/Comfy.TutorialCompleted", json=True)).status == 200
        prompt_id = await ended(console.gateway, invert_workflow(prefix="red-fox"))
        await console.open(f"/console/jobs/{prompt_id}")
        comfyui = await opened(console)
        await comfyui.wait_for_function(f"{_PREFIXES}.includes('red-fox')", timeout=PATIENCE_MS)
        drawn = await comfyui.evaluate("window.app.graph.serialize()")
        drawn["nodes"][0]["title"] = "Drawn by hand"
        # What it begins with is loaded before: ours stays.
        await comfyui.wait_for_load_state("networkidle")
        assert await comfyui.evaluate(f"{_PREFIXES}.includes('red-fox')")
        await comfyui.close()
        other = await ended(
            console.gateway, invert_workflow(1, prefix="blue-fox"), extra_data={"extra_pnginfo": {"workflow": drawn}}
        )
        await console.open(f"/console/jobs/{other}")
        comfyui = await opened(console)
        await comfyui.wait_for_function(f"{_TITLES}.includes('Drawn by hand')", timeout=PATIENCE_MS)


async def opened(console: Console) -> Any:
    """The window that the button opens."""
    async with console.page.expect_popup() as popup:
        await console.page.get_by_role("button", name="Open in ComfyUI").click()
    page = await popup.value
    await page.wait_for_function("window.app?.graph", timeout=4 * PATIENCE_MS)
    return page
