"""The bridge's routes about prompts: ComfyUI's ``/prompt``, ``/queue``, ``/history`` and ``/interrupt``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import SecretStr

from comfyui import jsonio
from comfyui.exceptions import ComfyUIValidationError, JSONError
from comfyui.runpod.inputs import InputFiles
from comfyui.runpod.job import SECRETS, Job, now_ms
from comfyui.runpod.jobs import JobQueue
from comfyui.runpod.journal import Journal
from comfyui.runpod.narrator import needed_by
from comfyui.workflows.api_format import check_api_format, last_nodes, node_order

JSON = Mapping[str, Any]
# A larger body would hold up the event loop.
_PARSED_ON_LOOP = 256 * 1024


class PromptRoutes:
    def __init__(self, queue: JobQueue, journal: Journal, inputs: InputFiles) -> None:
        self._queue = queue
        self._journal = journal
        self._inputs = inputs

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
        ]

    async def get_prompt(self, _request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": self._queue.remaining}})

    async def post_prompt(self, request: web.Request) -> web.Response:
        """Answered when the prompt is in the journal; it is sent in the background."""
        body = await json_object(request)
        if "prompt" not in body:
            return _refused("no_prompt", "No prompt provided", "No prompt provided")
        prompt_id = body.get("prompt_id") or str(uuid.uuid4())
        if not is_canonical_uuid(prompt_id):
            return _refused("invalid_prompt_id", "prompt_id must be a valid UUID", "a UUID in lower case is wanted")
        try:
            job = self._job(prompt_id, body)
            await self._inputs.check(job)
            job = await self._queue.add(job)
        except ComfyUIValidationError as error:
            return json_answer(error.upstream or _shape(error), status=400)
        return json_answer({"prompt_id": prompt_id, "number": job.number, "node_errors": {}})

    def _job(self, prompt_id: str, body: JSON) -> Job:
        prompt, extra_data = body["prompt"], body.get("extra_data") or {}
        if not isinstance(prompt, dict):
            raise ComfyUIValidationError("prompt: an object is wanted, node id to node")
        check_api_format(prompt)
        if not isinstance(extra_data, dict):
            raise ComfyUIValidationError("extra_data: an object is wanted")
        outputs = node_order(last_nodes(prompt))
        if (targets := body.get("partial_execution_targets")) is not None:
            known = isinstance(targets, list) and all(isinstance(one, str) and one in prompt for one in targets)
            if not known or not targets:
                raise ComfyUIValidationError("partial_execution_targets: a list of this workflow's nodes is wanted")
            prompt, outputs = needed_by(prompt, targets), targets
        number = body.get("number")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise ComfyUIValidationError("number: a number is wanted")
        shown = {name: value for name, value in extra_data.items() if name not in SECRETS}
        if "client_id" in body:
            shown["client_id"] = body["client_id"]
        return Job(
            prompt_id,
            self._queue.next_number(front=bool(body.get("front"))) if number is None else float(number),
            prompt,
            {**shown, "create_time": now_ms()},
            outputs,
            keys={
                SECRETS[name]: SecretStr(key)
                for name in SECRETS
                if isinstance(key := extra_data.get(name), str) and key
            },
            keyed=any(extra_data.get(name) for name in SECRETS),
        )

    async def get_queue(self, _request: web.Request) -> web.Response:
        return json_answer(
            {
                "queue_running": [job.item() for job in self._queue.running()],
                "queue_pending": [job.item() for job in self._queue.pending()],
            }
        )

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        ids = [job.prompt_id for job in self._queue.pending()] if body.get("clear") else []
        await self._queue.dequeue([*ids, *_ids(body)])
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        try:
            max_items = int(request.query["max_items"]) if "max_items" in request.query else None
            offset = int(request.query.get("offset", -1))
        except ValueError:
            return _refused("invalid_query", "max_items, offset: whole numbers are wanted", "")
        entries = await self._journal.entries(max_items, offset)
        body = await asyncio.to_thread(_joined, entries)
        return web.Response(body=body, content_type="application/json")

    async def get_history_entry(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        entry = await self._journal.entry(prompt_id)
        return web.Response(body=_joined({prompt_id: entry} if entry else {}), content_type="application/json")

    async def post_history(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        if body.get("clear"):
            await self._journal.forget_all()
        await self._journal.forget(_ids(body))
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        prompt_id = (await json_object(request)).get("prompt_id")
        await self._queue.interrupt(prompt_id if isinstance(prompt_id, str) and prompt_id else None)
        return web.Response()


def json_answer(body: JSON, status: int = 200) -> web.Response:
    return web.Response(status=status, body=jsonio.dumps(body), content_type="application/json")


async def json_object(request: web.Request) -> JSON:
    """The body, empty for what is no JSON object: as ComfyUI takes it."""
    text = await request.read()
    try:
        body = jsonio.loads(text) if len(text) <= _PARSED_ON_LOOP else await asyncio.to_thread(jsonio.loads, text)
    except JSONError:
        return {}
    return body if isinstance(body, dict) else {}


def is_canonical_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _ids(body: JSON) -> list[str]:
    wanted = body.get("delete")
    return [one for one in wanted if isinstance(one, str)] if isinstance(wanted, list) else []


def _joined(entries: Mapping[str, bytes]) -> bytes:
    """Entries are JSON already."""
    return b"{%b}" % b",".join(b"%b:%b" % (jsonio.dumps(prompt_id), entry) for prompt_id, entry in entries.items())


def _refused(kind: str, message: str, details: str) -> web.Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return json_answer({"error": error, "node_errors": {}}, status=400)


def _shape(error: ComfyUIValidationError) -> JSON:
    """Our refusal in ComfyUI's shape."""
    node_errors = {
        node_id: {
            "errors": [
                {"type": "invalid_node", "message": message, "details": "", "extra_info": {}} for message in messages
            ],
            "dependent_outputs": [],
            "class_type": "",
        }
        for node_id, messages in error.node_errors.items()
    }
    refused = {"type": "invalid_prompt", "message": error.detail, "details": "", "extra_info": {}}
    return {"error": refused, "node_errors": node_errors}
