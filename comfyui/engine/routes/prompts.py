"""ComfyUI's routes about prompts, and what describes the server; `server.py` adds the `/api` twins."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from aiohttp import web

from comfyui.engine.crashing import CRASHES, crash
from comfyui.engine.faults import Faults
from comfyui.engine.files import Folders
from comfyui.engine.nodes.registry import NODES
from comfyui.engine.options import EngineOptions
from comfyui.engine.queue import PromptQueue, QueuedPrompt
from comfyui.engine.validation import validate_prompt
from comfyui.engine.websocket import FEATURES

_GIB = 1 << 30
_ID_DETAILS = (
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one"
)


class PromptRoutes:
    def __init__(self, queue: PromptQueue, folders: Folders, options: EngineOptions, faults: Faults) -> None:
        self._queue = queue
        self._folders = folders
        self._options = options
        self._faults = faults
        self._number = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/prompt", self.get_prompt),
            web.post("/prompt", self.post_prompt),
            web.get("/queue", self.get_queue),
            web.post("/queue", self.post_queue),
            web.get("/history", self.get_history),
            web.get("/history/{prompt_id}", self.get_history_entry),
            web.post("/history", self.post_history),
            web.post("/interrupt", self.interrupt),
            web.post("/free", self.free),
        ]

    def queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self._queue.remaining}}

    def forget(self) -> None:
        self._number = 0

    async def get_prompt(self, _request: web.Request) -> web.Response:
        return web.json_response(self.queue_info())

    async def post_prompt(self, request: web.Request) -> web.Response:
        # ComfyUI looks for names in whatever the body is: a list has none of them, and a number cannot be asked.
        body = await request.json()
        number = self._next_number(body)
        if "prompt" not in body:
            return _refusal("no_prompt", "No prompt provided", "No prompt provided")
        prompt_id = self._prompt_id(body)
        if prompt_id is None:
            return _refusal("invalid_prompt_id", "prompt_id must be a valid UUID", _ID_DETAILS)
        prompt = body["prompt"]
        targets = body.get("partial_execution_targets")
        self._perhaps_crash(prompt)
        # In a thread, because it reads the input files.
        verdict = await asyncio.to_thread(
            validate_prompt, prompt, targets, self._folders, modern=self._options.is_modern
        )
        if verdict.error is not None:
            return web.json_response({"error": verdict.error, "node_errors": verdict.node_errors}, status=400)
        extra_data = body.get("extra_data", {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        if self._options.is_modern:
            extra_data["create_time"] = int(time.time() * 1000)
        self._queue.put(QueuedPrompt(number, prompt_id, prompt, extra_data, verdict.outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    def _perhaps_crash(self, prompt: Any) -> None:
        """Acts like a custom node whose validation ends the process."""
        nodes = prompt.items() if isinstance(prompt, dict) else ()
        for node_id, node in nodes:
            facts = {"node_id": node_id, "class_type": str(node.get("class_type")) if isinstance(node, dict) else ""}
            for how in CRASHES:
                if (config := self._faults.take(how, "validation", **facts)) is not None:
                    crash(how, config)

    def _next_number(self, body: Any) -> float:
        if "number" in body:
            return float(body["number"])
        front = body["front"] if "front" in body else False  # noqa: SIM401 - a list has no `get`
        number = -self._number if front else self._number
        self._number += 1
        return number

    def _prompt_id(self, body: dict[str, Any]) -> str | None:
        """The caller's id, or a new one; None if the caller's may not be used."""
        if not self._options.is_modern:
            return str(body.get("prompt_id", uuid.uuid4()))
        wanted = body.get("prompt_id")
        if wanted is None:
            return str(uuid.uuid4())
        return wanted if is_canonical_uuid(wanted) else None

    async def get_queue(self, _request: web.Request) -> web.Response:
        with_secrets = not self._options.is_modern
        running, pending = self._queue.listed()
        return web.json_response(
            {
                "queue_running": [item.as_item(with_secrets=with_secrets) for item in running],
                "queue_pending": [item.as_item(with_secrets=with_secrets) for item in pending],
            }
        )

    async def post_queue(self, request: web.Request) -> web.Response:
        clear, named = _clear_and_delete(await request.json())
        if clear:
            self._queue.clear()
        for prompt_id in named:
            # ComfyUI compares them with the ids, whatever they are.
            if isinstance(prompt_id, str):
                self._queue.delete(prompt_id)
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        max_items = request.query.get("max_items")
        history = self._queue.history(
            int(max_items) if max_items is not None else None, int(request.query.get("offset", -1))
        )
        return web.json_response(history)

    async def get_history_entry(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        entry = self._queue.entry(prompt_id)
        return web.json_response({} if entry is None else {prompt_id: entry})

    async def post_history(self, request: web.Request) -> web.Response:
        clear, named = _clear_and_delete(await request.json())
        if clear:
            self._queue.clear_history()
        for prompt_id in named:
            self._queue.delete_history(prompt_id)
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id")
        if prompt_id:
            self._queue.interrupt_if_running(prompt_id)
        else:
            self._queue.interrupted.set()
        return web.Response()

    async def free(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._queue.request_free(
            unload_models=bool(body.get("unload_models")), free_memory=bool(body.get("free_memory"))
        )
        return web.Response()


class InfoRoutes:
    """Descriptions of the server; the answers say that it is a simulation if they have a member for it."""

    def __init__(self, folders: Folders, options: EngineOptions) -> None:
        self._folders = folders
        self._options = options

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/object_info", self.object_info),
            web.get("/object_info/{node_class}", self.object_info),
            web.get("/system_stats", self.system_stats),
            web.get("/features", self.features),
            web.get("/embeddings", self.embeddings),
            web.get("/extensions", self.empty_list),
            web.get("/i18n", self.empty_object),
            web.get("/workflow_templates", self.empty_object),
            web.get("/models", self.models),
            web.get("/models/{folder}", self.models_in),
            web.get("/experiment/models", self.model_folders),
            web.get("/experiment/models/{folder}", self.model_files),
            web.get("/view_metadata/{folder}", self.view_metadata),
        ]

    async def object_info(self, request: web.Request) -> web.Response:
        wanted = request.match_info.get("node_class")
        known = [name for name, found in NODES.items() if self._options.is_modern or not found.newer]
        names = known if wanted is None else [wanted] if wanted in known else []
        return web.json_response(await asyncio.to_thread(self._describe, names))

    def _describe(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: NODES[name].info(self._folders) for name in names}

    async def system_stats(self, _request: web.Request) -> web.Response:
        memory = {"vram_total": 8 * _GIB, "vram_free": 7 * _GIB, "torch_vram_total": _GIB, "torch_vram_free": _GIB}
        system = {
            "os": sys.platform if self._options.is_modern else os.name,
            "ram_total": 16 * _GIB,
            "ram_free": 12 * _GIB,
            "comfyui_version": self._options.comfyui_version,
            "simulation": True,
            "required_frontend_version": None,
            "installed_templates_version": None,
            "required_templates_version": None,
            "python_version": sys.version,
            "pytorch_version": f"none (simulation on {platform.machine()})",
            "embedded_python": False,
            "argv": sys.argv,
        }
        device = {"name": "simulation", "type": "cpu", "index": None, **memory}
        return web.json_response({"system": system, "devices": [device]})

    async def features(self, _request: web.Request) -> web.Response:
        return web.json_response({**FEATURES, **self._options.features})

    async def empty_list(self, _request: web.Request) -> web.Response:
        return web.json_response([])

    async def empty_object(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response(list(self._folders.models))

    async def embeddings(self, _request: web.Request) -> web.Response:
        return web.json_response([PurePath(name).stem for name in self._folders.models["embeddings"]])

    async def models_in(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in self._folders.models:
            return web.Response(status=404)
        return web.json_response(self._folders.models[folder])

    async def model_folders(self, _request: web.Request) -> web.Response:
        models = self._folders.base / "models"
        names = (name for name in self._folders.models if name not in {"configs", "custom_nodes"})
        return web.json_response([{"name": name, "folders": [str(models / name)]} for name in names])

    async def model_files(self, request: web.Request) -> web.Response:
        """There is no file behind a name: sizes and times are made up."""
        folder = request.match_info["folder"]
        if folder not in self._folders.models:
            return web.Response(status=404)
        facts = {"pathIndex": 0, "modified": 0.0, "created": 0.0, "size": 0}
        return web.json_response([{"name": name, **facts} for name in self._folders.models[folder]])

    async def view_metadata(self, request: web.Request) -> web.Response:
        name = request.query.get("filename", "")
        if not name.endswith(".safetensors") or name not in self._folders.models.get(request.match_info["folder"], ()):
            return web.Response(status=404)
        return web.json_response({"modelspec.title": name, "simulation": "true"})


def _clear_and_delete(body: Any) -> tuple[Any, Any]:
    """The request in the body. ComfyUI looks for the names in any kind of body: a list without them asks for
    nothing.
    """
    clear = body["clear"] if "clear" in body else False  # noqa: SIM401 - the same, but for what has no `get`
    return clear, body["delete"] if "delete" in body else ()  # noqa: SIM401


def is_canonical_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _refusal(kind: str, message: str, details: str) -> web.Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=400)
