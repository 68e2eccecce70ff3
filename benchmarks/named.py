"""What named workflows cost: setting the values at each call, and reading the files at the start."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from benchmarks.processes import ROOT, BenchError, running_gateway
from benchmarks.stage import Row, Stage, percentile
from comfyui import jsonio
from comfyui.limits import DEFAULT_LIMITS
from comfyui.named.binding import bind
from comfyui.named.loading import load
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedWorkflow

_PARAMETERS = 20
_NODES = 75
_WORKFLOWS = 500
_CALLS = 200
_LOOKS = 150
_EXAMPLE = ROOT / "examples" / "workflows" / "text-to-image.json"
_KINDS = ("seed", "steps", "cfg", "sampler_name", "denoise")


async def binding(on: Stage) -> list[Row]:
    """The time to check and set twenty parameters of a workflow of 75 nodes, which is CPU work alone."""
    reply = await on.engine_pool.request("GET", "/object_info")
    named = _with_parameters(jsonio.loads(reply.body))
    # Each parameter gets another value than in the workflow; seeds and choices are among them.
    values = {**named.example, "seed_0": 7, "seed_1": 8, "seed_2": 9, "seed_3": "random"}
    rng, blocks = Random(1), []  # noqa: S311
    for _ in range(5 if on.quick else 30):
        before = time.process_time()
        for _ in range(_CALLS):
            bind(named, values, rng=rng)
        blocks.append((time.process_time() - before) / _CALLS * 1000)
    took_ms = statistics.median(blocks)
    return [
        Row(
            f"{len(values)} parameters bound and checked, {len(named.prompt)} nodes, CPU",
            f"{took_ms:.3f} ms",
            "≤ 0.3 ms",
            took_ms <= 0.3 and len(values) == _PARAMETERS,
            f"{min(blocks):.3f} to {max(blocks):.3f} ms",
        )
    ]


async def starting(on: Stage) -> list[Row]:
    """CPU time of the process until `/health/live`, with 500 files and with none in turn, and of loading them all."""
    with tempfile.TemporaryDirectory(prefix="comfyui-gateway-benchmark-") as folder:
        full, empty = Path(folder) / "full", Path(folder) / "empty"
        _write_workflows(full)
        empty.mkdir()
        more = [await _until_live_s(full, on) - await _until_live_s(empty, on) for _ in range(1 if on.quick else 5)]
        reply = await on.engine_pool.request("GET", "/object_info")
        typed_s = _all_loaded_s(full, jsonio.loads(reply.body))
    later_s = statistics.median(more)
    return [
        Row(
            f"start with {_WORKFLOWS} named workflows, later than with none, CPU",
            f"{later_s:.2f} s",
            "≤ 1 s",
            later_s <= 1,
            f"{min(more):.2f} to {max(more):.2f} s; all of them again when the nodes are known: {typed_s:.2f} s",
        )
    ]


async def document(on: Stage) -> list[Row]:
    """`/openapi.json` with a path for each of 500 files: the first answer makes it, the others are of its cache."""
    with tempfile.TemporaryDirectory(prefix="comfyui-gateway-benchmark-") as folder:
        full = Path(folder) / "full"
        _write_workflows(full)
        async with (
            running_gateway(on.engine, on.logs, WORKFLOWS_DIR=str(full)) as gateway,
            aiohttp.ClientSession(f"http://{gateway.address}") as http,
        ):
            text = await _typed_document(http)
            took_ms = [(await _document(http))[0] for _ in range(20 if on.quick else 100)]
    at_most = percentile(took_ms, 95)
    return [
        Row(
            f"/openapi.json of {_WORKFLOWS} named workflows from its cache, p95 of {len(took_ms)}",
            f"{at_most:.1f} ms",
            "≤ 100 ms",
            at_most <= 100,
            f"median {statistics.median(took_ms):.1f} ms; {len(text) / 1e6:.1f} MB",
        )
    ]


async def _typed_document(http: aiohttp.ClientSession) -> bytes:
    """The document, as soon as the engine has told its nodes and each workflow has its choices."""
    for _ in range(_LOOKS):
        _, text = await _document(http)
        if text.count(b'"enum"') > _WORKFLOWS:
            return text
        await asyncio.sleep(0.2)
    raise BenchError("the named workflows got no choices")


async def _document(http: aiohttp.ClientSession) -> tuple[float, bytes]:
    """The milliseconds until it is here as a whole, and its text."""
    began = time.perf_counter()
    async with http.get("/openapi.json") as response:
        text = await response.read()
    return (time.perf_counter() - began) * 1000, text


async def _until_live_s(folder: Path, on: Stage) -> float:
    async with running_gateway(on.engine, on.logs, "/health/live", WORKFLOWS_DIR=str(folder)) as gateway:
        return gateway.cpu_s()


def _all_loaded_s(folder: Path, object_info: Mapping[str, Any]) -> float:
    nodes = Nodes(object_info)
    before = time.process_time()
    for path in sorted(folder.glob("*.json")):
        found = load(path.stem, path.read_bytes(), path.with_suffix(".toml").read_bytes(), nodes, DEFAULT_LIMITS)
        assert isinstance(found, NamedWorkflow), found
    return time.process_time() - before


def _write_workflows(folder: Path) -> None:
    """Writes copies of the text-to-image example, each with another seed."""
    folder.mkdir()
    workflow = jsonio.loads(_EXAMPLE.read_bytes())
    sidecar = _EXAMPLE.with_suffix(".toml").read_bytes()
    for number in range(_WORKFLOWS):
        workflow["3"]["inputs"]["seed"] = number
        (folder / f"workflow-{number:03d}.json").write_bytes(jsonio.dumps(workflow))
        (folder / f"workflow-{number:03d}.toml").write_bytes(sidecar)


def _with_parameters(object_info: Mapping[str, Any]) -> NamedWorkflow:
    """A workflow with twenty parameters: five of each of its first four samplers."""
    example = jsonio.loads(_EXAMPLE.read_bytes())
    sampler, text = example["3"]["inputs"], example["6"]["inputs"]
    prompt = {one: {**example[one], "_meta": {"title": ""}} for one in ("4", "5", "6")}
    tables = []
    for number in range(_NODES - len(prompt)):
        node_id, kind = str(100 + number), "KSampler" if number < _PARAMETERS // len(_KINDS) else "CLIPTextEncode"
        inputs = {**sampler, "negative": ["6", 0]} if kind == "KSampler" else text
        prompt[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": ""}}
        if kind == "KSampler":
            tables += [
                f'[parameters.{name.removesuffix("_name")}_{number}]\nnode = "{node_id}"\ninput = "{name}"\n'
                for name in _KINDS
            ]
    found = load("wide", jsonio.dumps(prompt), "".join(tables).encode(), Nodes(object_info), DEFAULT_LIMITS)
    assert isinstance(found, NamedWorkflow), found
    return found
