"""The same requests to ComfyUI and to the gateway, and their answers without the parts that differ between runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from yarl import URL

from tests.support.merged_names import plain_names
from tests.support.running import until
from tests.support.target import Prompt, any_color, empty, inverted, node

JSON = Any
_TEMPORARY = re.compile(r"ComfyUI_temp_[a-z]{5}_\d{5}_")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Times: only compared for being numbers.
_TIMES: Final = frozenset(
    {"timestamp", "create_time", "execution_start_time", "execution_end_time", "modified", "created"}
)
# Free memory: only compared for being numbers.
_FREE: Final = frozenset({"ram_free", "vram_free", "torch_vram_free"})
# Names of the implementation: only compared for being a list.
_OF_THE_CODE: Final = frozenset({"traceback"})
# ComfyUI makes these lists from sets, so their order is chance.
_OF_SETS: Final = frozenset({"nodes", "executed", "current_outputs"})
# The place where a prompt was stopped, which is chance.
_WHERE_IT_WAS: Final = frozenset({"node_id", "node_type", "executed"})
# The fields that the gateway adds (jobs contract, section 3). `owner`: in `extra_data`, for callers who see all jobs.
# `servers`: in `extra_info`, with what each server lacks.
_ADDED: Final = frozenset({"owner", "servers"})
# The fields that it adds for older ComfyUIs: fleet contract, `/api/jobs` also over servers that lack it.
_ADDED_TO_OLD: Final = _ADDED | {"create_time"}
# These paths get no prefix ``/api``: the first has it already, and the others do not exist below it.
_WITHOUT_API: Final = ("/api/jobs", "/jobs", "/docs/", "/assets/", "/scripts/", "/templates/", "/extensions/")
CHECKPOINT: Final = "v1-5-pruned-emaonly.safetensors"
"""Only the first of the engines of `tests.contract.conftest` has it."""

# The node of the checkpoint. Earlier prompts decide whether it is in a server's cache.
_LOADER = "loader"
# Sizes of new pictures, which no cache has.
_SIZES = itertools.count()


async def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Number(float):
    """A prompt's number; only its rank among those of the same script is compared."""


class EndNumber(float):
    """The number in a history entry; only its rank among those of the same answer is compared."""


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: JSON


@dataclass(frozen=True)
class Instead:
    """The gateway's answer where it differs from ComfyUI's.

    Attributes:
        why: the reason, after a reference to the document that states it.
        status: of the answer.
        has: a text that the JSON of its body contains.
    """

    why: str
    status: int
    has: str = ""


@dataclass(frozen=True)
class Step:
    """One request and its answer.

    Attributes:
        request: method, path without ``/api``, and the body in short.
        instead: how the gateway's answer differs from ComfyUI's, or None if it must be equal.
    """

    request: str
    answer: Answer
    instead: Instead | None


@dataclass
class Caller:
    """A client of ComfyUI: `http` has its address and credentials.

    Attributes:
        prefix: "" or ``/api``.
        role: "comfyui" without a gateway, otherwise the role of its key, or "" without keys.
        is_modern: whether ComfyUI has job routes and checks prompt ids.
        is_real: whether this is a real ComfyUI.
        servers: number of servers behind the address.
    """

    http: aiohttp.ClientSession
    prefix: str
    role: str
    is_modern: bool
    is_real: bool
    servers: int = 1
    steps: list[Step] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _figures: set[int] = field(default_factory=set)
    _may_be_cached: set[str] = field(default_factory=lambda: {_LOADER})

    def fresh(self) -> Caller:
        """A copy without recorded requests."""
        return Caller(self.http, self.prefix, self.role, self.is_modern, self.is_real, self.servers)

    # Requests whose answers are compared

    async def get(self, path: str, **more: Any) -> Answer:
        """`more`: arguments of `ask`."""
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: JSON = None, **more: Any) -> Answer:
        """Sends a body of bytes unchanged. `more`: arguments of `ask`."""
        return await self.ask("POST", path, body, **more)

    async def ask(
        self,
        method: str,
        path: str,
        body: JSON = None,
        *,
        gateway: Instead | None = None,
        user: Instead | None = None,
        many: Instead | None = None,
        headers: Mapping[str, str] | None = None,
        name: str = "",
    ) -> Answer:
        """Sends a request and records the answer for the comparison.

        Args:
            headers: replace the content type of JSON.
            name: replaces the body in the record.
            gateway: the gateway's different answer to every caller.
            user: its different answer to a key of role `user`.
            many: its different answer if it has several servers.
        """
        answer = await self._answer(method, path, body, headers)
        instead = gateway or (user if self.role == "user" else None) or (many if self.servers > 1 else None)
        request = f"{method} {self._hidden(path)} {name or self._in_short(body)}".rstrip()
        kept = Answer(answer.status, answer.content_type, self._normalised(answer, method, path))
        self.steps.append(Step(request, kept, instead))
        return answer

    async def upload(
        self,
        name: str,
        content: bytes,
        *,
        path: str = "/upload/image",
        field: str = "image",
        instead: Instead | None = None,
        **fields: str,
    ) -> Answer:
        """Uploads a form with one file."""
        form = aiohttp.FormData(quote_fields=False)
        form.add_field(field, content, filename=name, content_type="image/png")
        for key, value in fields.items():
            form.add_field(key, value)
        answer = await self._answer("POST", path, form)
        kept = Answer(answer.status, answer.content_type, self._normalised(answer, "POST", path))
        told = " ".join(
            key if key == "original_ref" else f"{key}={self._hidden(value)}" for key, value in fields.items()
        )
        self.steps.append(Step(f"POST {path} {self._hidden(name)} {told}".rstrip(), kept, instead))
        return answer

    async def submit(self, name: str, workflow: Prompt, **fields: Any) -> str:
        """Queues a workflow; the record has `name` instead of its id."""
        answer = await self._answer("POST", "/prompt", {"prompt": workflow, **fields})
        # ComfyUI sorts jobs by the millisecond, so two of the same millisecond would come in any order.
        await until(_now_ms, (await _now_ms()).__lt__)
        assert answer.status == 200, answer
        prompt_id = self.named(answer.body["prompt_id"], name)
        kept = Answer(200, answer.content_type, self._normalised(answer, "POST", "/prompt"))
        self.steps.append(Step(f"POST /prompt {name}", kept, None))
        return prompt_id

    # Steps that are not compared

    def named(self, text: str, name: str) -> str:
        """Returns the text; the record has `name` instead of it."""
        self._names[text] = f"<{name}>"
        return text

    async def ended(self, *prompt_ids: str) -> None:
        """Waits until the history has these prompts."""
        for prompt_id in prompt_ids:
            await until(lambda one=prompt_id: self._look(f"/history/{one}"), bool, timeout_s=50)  # type: ignore[misc]

    async def runs(self, prompt_id: str) -> None:
        """Waits until the prompt runs."""
        await until(lambda: self._look("/queue"), lambda queue: prompt_id in _ids(queue["queue_running"]))

    async def waits(self, *prompt_ids: str) -> None:
        """Waits until all these prompts are pending."""
        await until(lambda: self._look("/queue"), lambda queue: set(prompt_ids) <= _ids(queue["queue_pending"]))

    async def cleared(self) -> None:
        """Ends the caller's prompts and deletes them from queue and history."""
        await self._answer("POST", "/queue", {"clear": True})

        async def stopped() -> JSON:
            queue = await self._look("/queue")
            if queue["queue_running"]:
                await self._answer("POST", "/interrupt", None)
            return queue

        await until(stopped, lambda queue: not queue["queue_running"] and not queue["queue_pending"], timeout_s=30)
        await self._answer("POST", "/history", {"clear": True})
        await until(lambda: self._look("/history"), lambda entries: entries == {})
        # A stopped prompt may run to the end of its node; meanwhile the gateway counts it as foreign.
        await until(lambda: self._look("/prompt"), lambda told: told == {"exec_info": {"queue_remaining": 0}})

    # Workflows

    def quick(self, **image: int) -> Prompt:
        """A workflow that saves one file of a new picture, of which no cache has any part."""
        prefix = self.named(f"same-{uuid.uuid4().hex}", "file")
        return inverted(prefix, color=self._color(), **image)

    def plain(self, color: int) -> Prompt:
        """Like `quick`, with one colour, so that its picture can be compared."""
        if self.is_real:  # the one real server has drawn the same picture for the other side
            self._may_be_cached |= {"1", "2", "3"}
        return inverted(self.named(f"same-{uuid.uuid4().hex}", "file"), color=color)

    def without_names(self, text: str) -> str:
        """The text with the recorded names in place of ids and random names."""
        return self._hidden(text)

    def long(self) -> Prompt:
        """A workflow that runs until it is stopped, always on the same server."""
        workflow = self.pinned()
        last = workflow["9"]["inputs"]
        if self.is_real:
            for number in range(100, 130):
                workflow[str(number)] = node("ImageBlur", image=last["images"], blur_radius=31, sigma=1.0)
                last["images"] = [str(number), 0]
        else:
            workflow["100"] = node("SimulatedSleep", value=last["images"], seconds=600, steps=1)
            last["images"] = ["100", 0]
        return workflow

    def pinned(self) -> Prompt:
        """A quick workflow that always runs on the same server."""
        prefix = self.named(f"same-{uuid.uuid4().hex}", "file")
        save = node("SaveImage", images=["2", 0], filename_prefix=prefix)
        if self.is_real:  # there is only one server, and it has no checkpoint
            return {"2": empty(color=self._color(), width=512, height=512, batch_size=2), "9": save}
        rows, width = divmod(next(_SIZES), 1_500)
        return {
            _LOADER: node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "3": node("EmptyLatentImage", width=self._figure(8 * (width + 300)), height=16 + rows, batch_size=1),
            "2": node("VAEDecode", samples=["3", 0], vae=[_LOADER, 2]),
            "9": save,
        }

    def _color(self) -> int:
        return self._figure(any_color() | 0x800000)

    def _figure(self, figure: int) -> int:
        self._figures.add(figure)
        return figure

    # Inside

    async def _look(self, path: str) -> JSON:
        return (await self._answer("GET", path, None)).body

    async def _answer(self, method: str, path: str, body: JSON, asked: Mapping[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes | aiohttp.FormData | None) else json.dumps(body).encode()
        target = path if path.startswith(_WITHOUT_API) else f"{self.prefix}{path}"
        headers = {"Content-Type": "application/json"} if isinstance(data, bytes) else {}
        async with self.http.request(
            method, URL(target, encoded=True), data=data, headers=asked or headers, allow_redirects=False
        ) as response:
            if response.content_type.startswith("image/"):
                found = hashlib.sha256(await response.read()).hexdigest()
                return Answer(response.status, response.content_type, found)
            text = await response.text()
            # JSON is always UTF-8.
            kind = response.headers.get("Content-Type", "").replace(
                "application/json; charset=utf-8", "application/json"
            )
            if kind == "application/json" and text and response.status != 206:
                return Answer(response.status, kind, json.loads(text))
            # Only the first line of a server error is compared, without the details of its code.
            return Answer(response.status, kind, text.splitlines()[0] if text and response.status >= 500 else text)

    def _in_short(self, body: JSON) -> str:
        if isinstance(body, bytes | None):
            return self._hidden((body or b"").decode(errors="replace"))[:200]
        return json.dumps(self._without(body))[:200]

    def _hidden(self, text: str) -> str:
        for known, name in self._names.items():
            text = text.replace(known, name)
        return _TEMPORARY.sub("ComfyUI_temp_<any>_", _UUID.sub("<id>", text))

    def _normalised(self, answer: Answer, method: str, path: str) -> JSON:
        body = answer.body
        plain = path.partition("?")[0].removeprefix("/api")
        if self.role != "comfyui" and method == "GET":
            # fleet contract: a subfolder begins with the prompt's id.
            body = plain_names(body)
        if isinstance(body, dict):
            if plain == "/history" and method == "GET":
                body = {**body, "in this order": list(body)}
            if plain == "/queue" and self.role == "comfyui" and answer.status == 200:
                # fleet contract: pending prompts in order. ComfyUI shows its heap, of which only the first is in order.
                body = {**body, "queue_pending": sorted(body["queue_pending"], key=lambda item: item[0])}
            if plain.startswith("/history"):
                body = _with_numbers(body, EndNumber)
            elif plain.startswith("/jobs"):
                body = _with_priorities(body)
            else:
                body = _with_numbers(body, Number)
        return self._without(body)

    def _without(self, value: JSON) -> JSON:
        if isinstance(value, dict):
            added = _ADDED if self.is_modern else _ADDED_TO_OLD
            if value.get("status") == "cancelled":
                added |= {"execution_start_time"}  # it may be stopped before the gateway learns that it has begun
            return {self._hidden(name): self._field(name, one) for name, one in value.items() if name not in added}
        if isinstance(value, list):
            if value[:1] == ["execution_interrupted"]:
                told = {name: "<chance>" if name in _WHERE_IT_WAS else one for name, one in value[1].items()}
                return [value[0], self._without(told)]
            if len(value) == 5 and isinstance(value[0], Number | EndNumber):
                return [self._without(one) for one in value[:4]] + [sorted(value[4])]
            return [self._without(one) for one in value]
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, int) and value in self._figures:
            return "<any>"
        if isinstance(value, float) and value != value:
            return "NaN"  # it is not equal to itself
        return value

    def _field(self, name: str, value: JSON) -> JSON:
        if name in _TIMES and isinstance(value, int | float):
            return "<time>"
        if name in _FREE and isinstance(value, int):
            return "<any>"
        if name in _OF_THE_CODE and isinstance(value, list):
            return "<lines>"
        if name == "messages" and value and value[-1][0] == "execution_interrupted":
            # jobs contract section 2: a cancel is reported at once, before ComfyUI reports what it did until then.
            return self._without(value[-1:])
        if name in _OF_SETS and isinstance(value, list):
            return sorted(one for one in value if one not in self._may_be_cached)
        return self._without(value)


Case = Callable[[Caller], Awaitable[None]]
"""A script of requests."""


async def played(case: Case, caller: Caller) -> list[Step]:
    """Plays a script and returns its steps, with prompt numbers replaced by their ranks."""
    await caller.cleared()
    try:
        await case(caller)
    finally:
        await caller.cleared()
    numbers = sorted({one for step in caller.steps for one in _of_kind(step.answer.body, Number)})
    return [
        Step(
            step.request,
            Answer(step.answer.status, step.answer.content_type, _ranked(step.answer.body, numbers)),
            step.instead,
        )
        for step in caller.steps
    ]


def differences(comfyui: list[Step], gateway: list[Step]) -> dict[str, Any]:
    """The gateway's wrong answers by request: those that differ without being allowed to, or in another way."""
    found: dict[str, Any] = {}
    assert [step.request for step in comfyui] == [step.request for step in gateway], "a script depends on chance"
    for number, (theirs, ours) in enumerate(zip(comfyui, gateway, strict=True)):
        name = f"{number}: {theirs.request}"
        instead = ours.instead
        if instead is None:
            if theirs.answer != ours.answer:
                found[name] = {"ComfyUI": theirs.answer, "gateway": ours.answer}
        elif theirs.answer == ours.answer:
            found[name] = f"is the same; so this is no reason for anything: {instead.why}"
        elif ours.answer.status != instead.status or instead.has not in json.dumps(ours.answer.body):
            found[name] = {"wanted": instead, "gateway": ours.answer}
    return found


def _ids(items: list[list[JSON]]) -> set[str]:
    return {item[1] for item in items}


def _with_numbers(value: JSON, kind: type[float]) -> JSON:
    """Marks the numbers in POST /prompt's answer and in ``[number, id, prompt, extra_data, outputs]``."""
    if isinstance(value, dict):
        made = {name: _with_numbers(one, kind) for name, one in value.items()}
        if made.keys() == {"prompt_id", "number", "node_errors"}:
            made["number"] = kind(made["number"])
        return made
    if isinstance(value, list):
        if len(value) == 5 and isinstance(value[0], int | float) and isinstance(value[3], dict):
            return [kind(value[0]), *value[1:]]
        return [_with_numbers(one, kind) for one in value]
    return value


def _with_priorities(value: JSON) -> JSON:
    if isinstance(value, dict):
        made = {name: _with_priorities(one) for name, one in value.items()}
        if isinstance(made.get("priority"), int | float):
            made["priority"] = EndNumber(made["priority"])
        return made
    return [_with_priorities(one) for one in value] if isinstance(value, list) else value


def _of_kind(value: JSON, kind: type[float]) -> list[float]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _of_kind(inner, kind)]
    if isinstance(value, list):
        return [one for inner in value for one in _of_kind(inner, kind)]
    return [float(value)] if isinstance(value, kind) else []


def _ranked(value: JSON, numbers: list[float]) -> JSON:
    places: Mapping[type[float], list[float]] = {Number: numbers, EndNumber: sorted(set(_of_kind(value, EndNumber)))}

    def made(one: JSON) -> JSON:
        if isinstance(one, dict):
            return {name: made(inner) for name, inner in one.items()}
        if isinstance(one, list):
            return [made(inner) for inner in one]
        for kind, known in places.items():
            if isinstance(one, kind):
                return f"number {known.index(float(one))}"
        return one

    return made(value)
