"""The same requests to ComfyUI and to the gateway, and their answers without what may differ from run to run."""

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
# What a clock says: that they are numbers is compared.
_TIMES: Final = frozenset(
    {"timestamp", "create_time", "execution_start_time", "execution_end_time", "modified", "created"}
)
# What a machine has left: that they are numbers is compared.
_FREE: Final = frozenset({"ram_free", "vram_free", "torch_vram_free"})
# What names the implementation: that there is a list is compared.
_OF_THE_CODE: Final = frozenset({"traceback"})
# ComfyUI makes these lists of sets.
_OF_SETS: Final = frozenset({"nodes", "executed", "current_outputs"})
# Where a prompt was when it was stopped, which is chance.
_WHERE_IT_WAS: Final = frozenset({"node_id", "node_type", "executed"})
# What the gateway adds (jobs contract, section 3). `owner`: in `extra_data`, for who sees all.
# `servers`: in `extra_info`, what each server lacks.
_ADDED: Final = frozenset({"owner", "servers"})
# What it adds where ComfyUI is older than that: fleet contract, `/api/jobs` also over servers that lack it.
_ADDED_TO_OLD: Final = _ADDED | {"create_time"}
# These are not below ``/api`` as well; jobs are nowhere else.
_WITHOUT_API: Final = ("/api/jobs", "/jobs", "/docs/", "/assets/", "/scripts/", "/templates/", "/extensions/")
CHECKPOINT: Final = "v1-5-pruned-emaonly.safetensors"
"""On the engines of `tests.contract.conftest` only the first has it."""

# The node of the checkpoint. Whether it is in a server's cache, is what ran there before.
_LOADER = "loader"
# Of pictures that are like none before, so that nothing of them is in a cache.
_SIZES = itertools.count()


async def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Number(float):
    """A number of a prompt: only its place among those of the same script is compared."""


class EndNumber(float):
    """The number in an entry of the history: only its place among those of the same answer is compared."""


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: JSON


@dataclass(frozen=True)
class Instead:
    """What the gateway answers in place of what ComfyUI does.

    Attributes:
        why: the reason, with where it is written.
        status: of the answer.
        has: a text that its body has, as JSON.
    """

    why: str
    status: int
    has: str = ""


@dataclass(frozen=True)
class Step:
    """One request and its answer.

    Attributes:
        request: method, path without ``/api``, and the body in short.
        instead: how the gateway's answer may differ from ComfyUI's; None: not at all.
    """

    request: str
    answer: Answer
    instead: Instead | None


@dataclass
class Caller:
    """A client of ComfyUI: `http` has the address and the credentials that it was given.

    Attributes:
        prefix: "" or ``/api``.
        role: "comfyui" without a gateway, else the role of its key, "" for none.
        is_modern: whether ComfyUI has job routes and checks prompt ids.
        is_real: whether the ComfyUI is a real one.
        servers: how many are behind the address.
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

    def anew(self) -> Caller:
        """The same, which has asked for nothing yet."""
        return Caller(self.http, self.prefix, self.role, self.is_modern, self.is_real, self.servers)

    # Requests whose answers are compared

    async def get(self, path: str, **more: Any) -> Answer:
        """`more`: as for `ask`."""
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: JSON = None, **more: Any) -> Answer:
        """A body of bytes is sent as it is. `more`: as for `ask`."""
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
        """Send it, and keep the answer for the comparison.

        Args:
            headers: go with it, in place of the content type of JSON.
            name: stands for the body in what is compared.
            gateway: what the gateway answers instead, to everybody.
            user: what it answers instead to a key of role `user`.
            many: what it answers instead where several servers are behind it.
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
        """A form with one file."""
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
        """Queue it; its id stands as `name` in what is compared."""
        answer = await self._answer("POST", "/prompt", {"prompt": workflow, **fields})
        # ComfyUI sorts jobs by the millisecond: of two in the same one, either may stand first.
        await until(_now_ms, (await _now_ms()).__lt__)
        assert answer.status == 200, answer
        prompt_id = self.named(answer.body["prompt_id"], name)
        kept = Answer(200, answer.content_type, self._normalised(answer, "POST", "/prompt"))
        self.steps.append(Step(f"POST /prompt {name}", kept, None))
        return prompt_id

    # What only makes the script go on

    def named(self, text: str, name: str) -> str:
        """The text, which stands as `name` in what is compared."""
        self._names[text] = f"<{name}>"
        return text

    async def ended(self, *prompt_ids: str) -> None:
        """Until the history has them."""
        for prompt_id in prompt_ids:
            await until(lambda one=prompt_id: self._look(f"/history/{one}"), bool, timeout_s=50)  # type: ignore[misc]

    async def runs(self, prompt_id: str) -> None:
        """Until it is the one that runs, or one of them."""
        await until(lambda: self._look("/queue"), lambda queue: prompt_id in _ids(queue["queue_running"]))

    async def waits(self, *prompt_ids: str) -> None:
        """Until all of them are among what waits."""
        await until(lambda: self._look("/queue"), lambda queue: set(prompt_ids) <= _ids(queue["queue_pending"]))

    async def cleared(self) -> None:
        """Nothing of the caller's runs, waits or is told of any more."""
        await self._answer("POST", "/queue", {"clear": True})

        async def stopped() -> JSON:
            queue = await self._look("/queue")
            if queue["queue_running"]:
                await self._answer("POST", "/interrupt", None)
            return queue

        await until(stopped, lambda queue: not queue["queue_running"] and not queue["queue_pending"], timeout_s=30)
        await self._answer("POST", "/history", {"clear": True})
        await until(lambda: self._look("/history"), lambda entries: entries == {})
        # What was stopped may run to the end of its node, and is somebody else's for the gateway meanwhile.
        await until(lambda: self._look("/prompt"), lambda told: told == {"exec_info": {"queue_remaining": 0}})

    # Workflows

    def quick(self, **image: int) -> Prompt:
        """One file, of a picture that was not there before: nothing of it is in a cache."""
        prefix = self.named(f"same-{uuid.uuid4().hex}", "file")
        return inverted(prefix, color=self._color(), **image)

    def plain(self, color: int) -> Prompt:
        """As `quick`, of one colour: its picture is compared."""
        if self.is_real:  # there is one, which has drawn the same for the other side
            self._may_be_cached |= {"1", "2", "3"}
        return inverted(self.named(f"same-{uuid.uuid4().hex}", "file"), color=color)

    def without_names(self, text: str) -> str:
        """The text with what stands for ids and made-up names in what is compared."""
        return self._hidden(text)

    def long(self) -> Prompt:
        """It runs until it is stopped, and always on the same server."""
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
        """A quick one that always runs on the same server."""
        prefix = self.named(f"same-{uuid.uuid4().hex}", "file")
        save = node("SaveImage", images=["2", 0], filename_prefix=prefix)
        if self.is_real:  # it has no checkpoint, and is alone
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
            # What a failure of the server is called is compared, and not what it says of its code.
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
            # fleet contract: a subfolder begins with the id of the prompt.
            body = plain_names(body)
        if isinstance(body, dict):
            if plain == "/history" and method == "GET":
                body = {**body, "in this order": list(body)}
            if plain == "/queue" and self.role == "comfyui" and answer.status == 200:
                # fleet contract: pending by turn. ComfyUI shows its heap, of which only the first has its place.
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
                added |= {"execution_start_time"}  # it may be stopped before the gateway is told that it has begun
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
            return "NaN"  # it is like nothing, also not like itself
        return value

    def _field(self, name: str, value: JSON) -> JSON:
        if name in _TIMES and isinstance(value, int | float):
            return "<time>"
        if name in _FREE and isinstance(value, int):
            return "<any>"
        if name in _OF_THE_CODE and isinstance(value, list):
            return "<lines>"
        if name == "messages" and value and value[-1][0] == "execution_interrupted":
            # jobs contract section 2: a cancel is told at once, before ComfyUI says what it did until then.
            return self._without(value[-1:])
        if name in _OF_SETS and isinstance(value, list):
            return sorted(one for one in value if one not in self._may_be_cached)
        return self._without(value)


Case = Callable[[Caller], Awaitable[None]]
"""A script of requests."""


async def played(case: Case, caller: Caller) -> list[Step]:
    """What the caller was answered, with its numbers in their order."""
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
    """What the gateway answers otherwise, by request; for what may differ, whether it does so as it may."""
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
    """With those of POST /prompt's answer, and of ``[number, id, prompt, extra_data, outputs]``."""
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
