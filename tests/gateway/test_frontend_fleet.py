"""ComfyUI's own web frontend in Chromium with three servers, which look like one ComfyUI to the page.

All tests share the servers, the gateway and the page. Each begins with an empty graph, queue and history.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.support.running import executions, until
from tests.support.sites import ACTIVE, EXECUTION, PATIENCE_MS, SAME_SOCKET, Site

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

# The picture of LoadImage is saved inverted, and its mask is saved as a picture.
_MASKED = """() => {
    const made = ['LoadImage', 'ImageInvert', 'SaveImage', 'MaskToImage', 'SaveImage'].map((type, column) => {
        const node = LiteGraph.createNode(type)
        node.pos = [100 + 220 * column, 100]
        window.app.graph.add(node)
        return node
    })
    const [load, invert, save, mask, saveMask] = made
    load.connect(0, invert, 0)
    invert.connect(0, save, 0)
    load.connect(1, mask, 0)
    mask.connect(0, saveMask, 0)
    window.loader = load
    window.savers = [save, saveMask]
}"""
_SELECT = "() => (window.app.canvas.select ?? window.app.canvas.selectNode).call(window.app.canvas, window.loader)"
# The canvas of the mask editor, which has no id in newer versions.
_MASK_CANVAS = "() => document.querySelector('#maskCanvas, #maskEditorCanvasContainer canvas.z-30')"
_HAS_PAINT = f"""() => {{
    const canvas = ({_MASK_CANVAS})()
    return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((byte, at) =>
        at % 4 === 3 && byte > 0)
}}"""
_LOADED = "window.loader.widgets.find(one => one.name === 'image').value"


async def test_six_prompts_of_one_page_that_end_out_of_order_show_six_pictures(site: Site) -> None:
    before = {name: len(executions(server)) for name, server in site.servers.items()}
    ids = [await site.queue(tag) for tag in range(6)]
    site.wake(*ids[1:])
    await site.ended(5)
    site.wake(ids[0])
    ended = await site.ended(6)
    assert sorted(ended) == sorted(ids)
    assert ended[-1] == ids[0]
    assert sum(len(executions(server)) > before[name] for name, server in site.servers.items()) >= 2
    await site.shown([16 * (ids.index(prompt_id) + 1) for prompt_id in reversed(ended)])


async def test_the_first_of_two_concurrent_prompts_keeps_its_progress(site: Site) -> None:
    page = site.page
    first = await site.queue(11, steps=2000)
    await page.wait_for_function(f"{EXECUTION}.executingNodeId === '4'", timeout=PATIENCE_MS)
    second = await site.queue(12)
    site.wake(second)
    assert await site.ended(1) == [second]
    await page.wait_for_function(f"{ACTIVE} === '{first}'", timeout=PATIENCE_MS)
    assert await page.evaluate(f"{EXECUTION}.executingNodeId") == "4"
    before = await page.evaluate(f"{EXECUTION}.executingNodeProgress")
    await page.wait_for_function(f"{EXECUTION}.executingNodeProgress > {before or 0}", timeout=PATIENCE_MS)
    await page.evaluate("window.app.api.interrupt()")
    assert await site.ended(2) == [second, first]
    await page.wait_for_function(f"{ACTIVE} === null", timeout=PATIENCE_MS)
    assert await page.evaluate(SAME_SOCKET)


async def test_a_painted_mask_runs_and_a_picture_of_one_server_is_an_input_of_another(
    site: Site,
) -> None:
    page, (home, other, _) = site.page, site.servers
    uploaded = io.BytesIO()
    Image.new("RGB", (200, 150), (200, 30, 30)).save(uploaded, "PNG")
    await page.evaluate(_MASKED)
    async with page.expect_file_chooser() as chooser:
        await page.evaluate("() => window.loader.widgets.find(one => one.type === 'button').callback()")
    file = {"name": "uploaded.png", "mimeType": "image/png", "buffer": uploaded.getvalue()}
    await (await chooser.value).set_files(files=[file])
    await page.wait_for_function("window.loader.imgs?.[0]?.naturalWidth === 200", timeout=PATIENCE_MS)

    await page.evaluate(_SELECT)
    await page.evaluate("window.app.extensionManager.command.execute('Comfy.MaskEditor.OpenMaskEditor')")
    await page.wait_for_function(f"({_MASK_CANVAS})()?.width === 200", timeout=PATIENCE_MS)
    at = await page.evaluate(f"({_MASK_CANVAS})().getBoundingClientRect().toJSON()")
    across, down = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2

    async def painted() -> bool:
        await page.mouse.move(across - 60, down)
        await page.mouse.down()
        await page.mouse.move(across + 60, down, steps=12)
        await page.mouse.up()
        return bool(await page.evaluate(_HAS_PAINT))

    await until(painted, bool, timeout_s=PATIENCE_MS / 1000)
    await page.locator("button:visible", has_text="Save").last.click()
    await page.wait_for_function(f"{_LOADED}.includes('clipspace-painted-masked')", timeout=PATIENCE_MS)
    # Only the first server can have the file that was made from the upload.
    async with site.only(other):
        await page.evaluate("window.app.queuePrompt(0)")
        await site.ended(1)
    mask, inverted = await site.picture(1), await site.picture(0)
    assert (mask.getpixel((100, 75)), mask.getpixel((5, 5))) == ((255, 255, 255), (0, 0, 0))
    assert (inverted.size, inverted.getpixel((5, 5))) == ((200, 150), (55, 225, 225))

    # A picture of the mask that is copied within the page keeps its name as an output.
    await page.wait_for_function("window.savers[1].imgs?.[0]?.naturalWidth === 200", timeout=PATIENCE_MS)
    await page.evaluate("window.app.constructor.copyToClipspace(window.savers[1])")
    await page.evaluate("window.app.constructor.pasteFromClipspace(window.loader)")
    assert (await page.evaluate(_LOADED)).endswith(".png [output]")
    async with site.only(home):
        await page.evaluate("window.app.queuePrompt(0)")
        await site.ended(2)
    inverted = await site.picture(0)
    assert (inverted.getpixel((100, 75)), inverted.getpixel((5, 5))) == ((0, 0, 0), (255, 255, 255))


async def test_prompts_on_any_server_can_be_cancelled_from_the_queue_of_the_page(site: Site) -> None:
    page = site.page
    ids = [await site.queue(tag) for tag in range(20, 28)]
    running = await site.run_until(3)
    waiting = [prompt_id for prompt_id in ids if prompt_id not in running]
    await site.open_queue()
    if site.is_old:
        await page.get_by_text("Pending", exact=True).first.click(button="right")
        await page.get_by_text("Delete", exact=True).click()
    else:
        await page.get_by_text("In queue").first.hover(timeout=PATIENCE_MS)
        await page.get_by_role("button", name="Cancel", exact=True).click()
    (deleted,) = await site.ended(1)
    assert deleted in waiting
    for count in range(3):  # the focused prompt, and then the next one with the focus
        await page.get_by_role("button", name="Cancel current run").click()
        await site.ended(2 + count)
    await page.get_by_role("button", name="Clear Pending Tasks" if site.is_old else "Clear queued").click()
    # A prompt that replaces a cancelled one already runs and is not pending.
    left = await until(site.jobs, lambda jobs: not jobs[1], timeout_s=PATIENCE_MS / 1000)
    site.wake(*left[0])
    assert sorted(await site.ended(8)) == sorted(ids)
    assert await page.evaluate(SAME_SOCKET)


async def test_the_page_gets_its_picture_although_the_server_was_killed(site: Site) -> None:
    prompt_id = await site.queue(30)
    name = (await site.run_until(1))[prompt_id]
    await site.kill(name)
    found = await until(site.running, lambda found: found.get(prompt_id) not in {None, name}, timeout_s=60)
    assert await site.page.evaluate("window.ends") == []
    site.servers[found[prompt_id]].wake(prompt_id)
    assert await site.ended(1) == [prompt_id]
    assert await site.page.evaluate(SAME_SOCKET)
    await site.shown([16 * 31])
    # The other tests need three servers too.
    await site.start_again(name)
