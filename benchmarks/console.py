"""The console: how soon its page is painted, how soon it shows a frame of progress, and what open consoles cost."""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.callers import Workflow, pool_of
from benchmarks.fleet import all_are_up
from benchmarks.merged import tap
from benchmarks.processes import BenchError, Server, free_port, running_gateway, running_server
from benchmarks.stage import Row, Stage, percentile

_SERVERS = 3
_CONSOLES = 50
# A sampler sends two frames for each step, so this means 20 frames a second.
_STEP_S = 0.1
_FEED = "/console/feed?want=servers,queue,progress,previews"
_STEP = re.compile(rb'"type": "progress", "data": \{"value": (\d+)')
_KB = 1000
# The steps of a job that the page shows, with their times in milliseconds of Unix time.
_WATCH = """() => {
    window.seen = {}
    new MutationObserver(() => {
        for (const one of document.querySelectorAll('[data-steps]')) {
            const step = one.textContent.split(' / ')[0]
            if (step && !(step in window.seen)) window.seen[step] = performance.timeOrigin + performance.now()
        }
    }).observe(document.body, { subtree: true, childList: true, characterData: true })
}"""
_LOADED = """() => {
    const paint = performance.getEntriesByName('first-contentful-paint')[0]
    const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
    return [paint?.startTime, all.reduce((sum, one) => sum + one.transferSize, 0)]
}"""


async def page(on: Stage) -> list[Row]:
    """Measures in a real browser: the first paint, and the time of a frame from ComfyUI to the screen."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        program = None
    if program is None:
        return [Row("the console's page", "not measured", detail="needs chromium, and playwright in this environment")]
    sent: dict[str, float] = {}

    def heard(data: bytes) -> None:
        for found in _STEP.finditer(data):
            sent.setdefault(found[1].decode(), time.time() * 1000)

    steps = 60 if on.quick else 300
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_engine(on, _STEP_S / 2))
        port = await stack.enter_async_context(tap(engine, heard))
        addresses = {"COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{port}", "QUEUE": "gateway"}
        gateway = await stack.enter_async_context(running_gateway(engine, on.logs, **addresses))
        driver = await stack.enter_async_context(async_playwright())
        browser = await driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        stack.push_async_callback(browser.close)
        paints, sizes = await _loads(browser, gateway, 3 if on.quick else 15)
        seen = await _shown_steps(browser, gateway, steps)
    delays = [at - sent[step] for step, at in seen.items() if step in sent]
    if len(delays) < steps / 4:
        raise BenchError(f"{len(delays)} of {steps} steps were seen on the page")
    paint, p95 = statistics.median(paints), percentile(delays, 95)
    return [
        Row(
            "first paint of /console",
            f"{paint:.0f} ms",
            "≤ 200 ms",
            paint <= 200,
            f"Chromium without a cache, median of {len(paints)}, the longest {max(paints):.0f} ms",
        ),
        Row("all bytes of /console", f"{max(sizes) / _KB:.0f} KB", "≤ 150 KB", max(sizes) <= 150 * _KB),
        Row(
            "from a frame of ComfyUI to the page, p95",
            f"{p95:.0f} ms",
            "< 100 ms",
            p95 < 100,
            f"p50 {percentile(delays, 50):.0f} ms; {len(delays)} of {steps} steps were shown, 40 frames/s",
        ),
    ]


async def _loads(browser: Any, gateway: Server, times: int) -> tuple[list[float], list[int]]:
    """First paint in ms and the bytes of `times` loads, each by a browser with an empty cache."""
    paints, sizes = list[float](), list[int]()
    for turn in range(times + 1):
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"http://{gateway.address}/console")
        await page.wait_for_selector("body[data-feed=open]")
        await page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        paint, size = await page.evaluate(_LOADED)
        if turn:  # the first one warms up
            paints.append(paint)
            sizes.append(size)
        await context.close()
    return paints, sizes


async def _shown_steps(browser: Any, gateway: Server, steps: int) -> dict[str, float]:
    """The time at which the page first showed each step of a job; steps that it never showed are left out."""
    page = await browser.new_page()
    await page.goto(f"http://{gateway.address}/console")
    await page.wait_for_selector("body[data-feed=open]")
    await page.evaluate(_WATCH)
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://{gateway.address}/prompt_sync?timeout=120", json={"prompt": _sampling(steps)}) as reply,
    ):
        reply.raise_for_status()
        await reply.read()
    found: dict[str, float] = await page.evaluate("window.seen")
    return found


async def open_consoles(on: Stage) -> list[Row]:
    """The gateway's CPU with open consoles, compared with none."""
    lasts_s = 5.0 if on.quick else 12.0
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(_engine(on, _STEP_S, number)) for number in range(_SERVERS)]
        settings = {"COMFYUI_SERVER_ADDRESS": ",".join(engine.address for engine in engines)}
        gateway = await stack.enter_async_context(running_gateway(engines[0], on.logs, **settings))
        await all_are_up(await stack.enter_async_context(pool_of(gateway)), _SERVERS)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        idle = await _shares(http, gateway, lasts_s)
        prompt = {"prompt": _sampling(int(4 * lasts_s / _STEP_S) + 200)}
        headers = {"Prefer": "respond-async"}
        async with http.post(f"http://{gateway.address}/prompt_sync", json=prompt, headers=headers) as reply:
            prompt_id = (await reply.json())["prompt_id"]
        await asyncio.sleep(2)
        busy = await _shares(http, gateway, lasts_s)
        await (await http.delete(f"http://{gateway.address}/prompt_sync/{prompt_id}")).read()
    return [
        _cost("while nothing runs", idle, 2),
        _cost("at 20 frames/s with previews", busy, 10),
    ]


@dataclass(frozen=True, slots=True)
class _Shares:
    """The gateway's share of a core in percent. `told_per_s`: progress messages per second to all consoles together."""

    without: float
    with_consoles: float
    told_per_s: float


def _cost(when: str, shares: _Shares, most: int) -> Row:
    added = shares.with_consoles - shares.without
    detail = f"{shares.with_consoles:.1f} % of a core with them, {shares.without:.1f} % without"
    detail += f"; {shares.told_per_s:.0f} progress messages/s"
    return Row(f"{_CONSOLES} open consoles {when}", f"{added:.1f} %", f"< {most} %", added < most, detail)


async def _shares(http: aiohttp.ClientSession, gateway: Server, lasts_s: float) -> _Shares:
    """Measures without a console, and then with all of them."""
    without, counts = await _share(gateway, lasts_s), [0]
    async with AsyncExitStack() as stack:
        reading = [await stack.enter_async_context(_open_feed(http, gateway, counts)) for _ in range(_CONSOLES)]
        await asyncio.sleep(2)
        before = counts[0]
        with_consoles = await _share(gateway, lasts_s)
        told_per_s = (counts[0] - before) / lasts_s
        if any(task.done() for task in reading):
            raise BenchError("a feed has ended")
    await asyncio.sleep(1)
    return _Shares(without, with_consoles, told_per_s)


async def _share(gateway: Server, lasts_s: float) -> float:
    before, began = gateway.cpu_s(), time.perf_counter()
    await asyncio.sleep(lasts_s)
    return 100 * (gateway.cpu_s() - before) / (time.perf_counter() - began)


@asynccontextmanager
async def _open_feed(
    http: aiohttp.ClientSession, gateway: Server, counts: list[int]
) -> AsyncIterator[asyncio.Task[None]]:
    async with http.get(f"http://{gateway.address}{_FEED}", timeout=aiohttp.ClientTimeout()) as answer:
        answer.raise_for_status()

        async def read() -> None:
            async for data in answer.content.iter_any():
                counts[0] += data.count(b"event: progress")

        task = asyncio.create_task(read())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _engine(on: Stage, step_s: float, number: int = 0) -> AsyncIterator[Server]:
    port = free_port()
    command = ["-m", "comfyui.engine", "--port", str(port), "--step-seconds", str(step_s)]
    async with running_server(f"stepping-engine-{number}", command, port, "/prompt", on.logs) as server:
        yield server


def _sampling(steps: int) -> Workflow:
    """A picture by a sampler, which reports each step and sends previews. Its seed differs each time."""
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    sampling = {"cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    seed = time.time_ns() % 2**32
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "2": _node("CLIPTextEncode", text="a red fox", clip=["1", 1]),
        "3": _node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "4": _node("KSampler", seed=seed, steps=steps, **sampling, **links),
        "5": _node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": _node("SaveImage", images=["5", 0], filename_prefix="console"),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
