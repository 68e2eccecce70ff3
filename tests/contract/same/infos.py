"""Scripts about what a server tells of its nodes, its models and itself."""

from __future__ import annotations

from tests.support.same_answers import CHECKPOINT, Caller, Instead

_DEVICES = Instead("fleet contract: devices of all, `index` renumbered, `name` with the server's", 200, '"devices"')


async def node_definitions(who: Caller) -> None:
    for name in ("CheckpointLoaderSimple", "KSampler", "SaveImage", "NoSuchNode", "odd%20name"):
        await who.get(f"/object_info/{name}")
    await who.ask("HEAD", "/object_info/KSampler")


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
    ):
        await who.get(path)


async def metadata_of_models(who: Caller) -> None:
    for query in (f"?filename={CHECKPOINT}", "?filename=nothing.safetensors", "?filename=odd.ckpt", ""):
        await who.get(f"/view_metadata/checkpoints{query}")


async def features(who: Caller) -> None:
    await who.get("/features")


async def system(who: Caller) -> None:
    await who.get("/system_stats", many=_DEVICES)


CASES = (node_definitions, models, metadata_of_models, features, system)
