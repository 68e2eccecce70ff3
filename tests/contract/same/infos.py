"""Scripts about a server's nodes, its models and its own state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.same_answers import CHECKPOINT, Answer, Caller, Instead, Step

_DEVICES = Instead(
    "fleet contract: the list has the devices of all servers; `index` is renumbered and `name` has the server's name",
    200,
    '"devices"',
)


_ODD = Instead("issue 19: a path that servers could read in two ways is 403 for a `user`", 403, '"type": "forbidden"')


def inputs_of(definition: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name and the declaration of each input."""
    for group in definition.get("input", {}).values():
        if isinstance(group, dict):
            yield from group.items()


async def node_definitions(who: Caller) -> None:
    for name in ("CheckpointLoaderSimple", "KSampler", "SaveImage", "NoSuchNode", "odd%20name"):
        await who.get(f"/object_info/{name}")
    await who.ask("HEAD", "/object_info/KSampler")


def _is_of_a_script(choice: Any) -> bool:
    return isinstance(choice, str) and (
        "same-" in choice or choice.partition("/")[0] in {"3d", "clipspace", "gateway", "a", "b", "c", "deep"}
    )


async def all_node_definitions(who: Caller) -> None:
    """Compares each definition by its hash, because there are hundreds."""
    async with who.http.get(f"{who.prefix}/object_info") as response:
        told = await response.json()
    for definition in told.values():
        for _, spec in inputs_of(definition):
            # Files that scripts upload, and their folders, are choices of some nodes.
            if isinstance(spec[0], list):
                spec[0] = [one for one in spec[0] if not _is_of_a_script(one)]
            elif len(spec) > 1 and isinstance(spec[1], dict) and isinstance(spec[1].get("options"), list):
                spec[1]["options"] = [one for one in spec[1]["options"] if not _is_of_a_script(one)]
    body = {name: hashlib.sha256(json.dumps(one).encode()).hexdigest() for name, one in told.items()}
    who.steps.append(Step("GET /object_info", Answer(response.status, response.content_type, body), None))
    await who.ask("HEAD", "/object_info")


async def models(who: Caller) -> None:
    for path in (
        "/models",
        "/models/checkpoints",
        "/models/loras",
        "/models/vae",
        "/models/nothing",
        "/embeddings",
        "/experiment/models/checkpoints",
        "/experiment/models/nothing",
        "/experiment/models/loras",
        "/models/configs",
        "/models/custom_nodes",
        "/models/Checkpoints",
        "/models/..",
        "/models/%2e%2e%2fx",
        "/experiment/models/preview/loras/0/nothing.safetensors",
        "/experiment/models/preview/nothing/0/x.safetensors",
    ):
        await who.get(path, user=_ODD if "%2e" in path else None)
    async with who.http.get(f"{who.prefix}/experiment/models") as response:
        told = [{**one, "folders": bool(one["folders"])} for one in await response.json()]
    who.steps.append(Step("GET /experiment/models", Answer(response.status, response.content_type, told), None))
    for path in ("/models", "/embeddings", "/experiment/models"):
        await who.ask("HEAD", path)


async def metadata_of_models(who: Caller) -> None:
    for query in (f"?filename={CHECKPOINT}", "?filename=nothing.safetensors", "?filename=odd.ckpt", "", "?filename="):
        for folder in ("checkpoints", "loras", "nothing"):
            await who.get(f"/view_metadata/{folder}{query}")
    for query in ("?filename=../x.safetensors", "?filename=/etc/passwd", "?filename=%00.safetensors"):
        await who.get(f"/view_metadata/checkpoints{query}")


async def features(who: Caller) -> None:
    await who.get("/features")
    await who.ask("HEAD", "/features")


async def system(who: Caller) -> None:
    await who.get("/system_stats", many=_DEVICES)
    await who.ask("HEAD", "/system_stats")


CASES = (node_definitions, all_node_definitions, models, metadata_of_models, features, system)
