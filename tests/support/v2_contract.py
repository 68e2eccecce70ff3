"""The shapes of Comfy API v2 according to its contract; every answer that a test gets is checked against them.

The SDKs' own models accept more than the contract allows: a time without a zone in one place, and a relative address.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema_rs

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._~-]+$"}
_UUID: Schema = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
_TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}
_ABSOLUTE: Schema = {"type": "string", "pattern": "^https?://[^/]+/"}
_LINK: Schema = {"type": "string", "pattern": "^(https?://[^/]+)?(/.*)?/api/v2/jobs/"}
_HASH: Schema = {"type": ["string", "null"], "pattern": "^blake3:[0-9a-f]{64}$"}
_STATUS: Schema = {"enum": ["queued", "running", "succeeded", "canceling", "canceled", "failed", "expired"]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


PROGRESS = _object(
    {"value": {"type": "number", "minimum": 0, "maximum": 1}, "nodes_done": _COUNT, "nodes_total": _COUNT},
    current_node=_TEXT,
    current_node_class=_TEXT,
    step={"type": "integer"},
    steps={"type": "integer"},
    message=_TEXT,
)
OUTPUT = _object(
    {
        "node_id": _TEXT,
        "name": {"type": "string", "minLength": 1},
        "type": {"enum": ["image", "video", "audio", "text", "file", "latent"]},
        "content_type": _TEXT,
        "size_bytes": _COUNT,
        "id": _ID,
        "hash": _HASH,
        "url": _ABSOLUTE,
        "url_expires_at": _TIME,
    },
    job_id=_UUID,
)
_JOB_ERROR = _object(
    {"code": _TEXT, "message": _TEXT}, **{name: _or_null(_TEXT) for name in ("node_id", "class_type", "traceback")}
)
JOB = _object(
    {
        "id": _UUID,
        "status": _STATUS,
        "created_at": _TIME,
        "started_at": _or_null(_TIME),
        "completed_at": _or_null(_TIME),
        "expires_at": _TIME,
        "queue_position": _or_null({"type": "integer", "minimum": 1}),
        "progress": _or_null(PROGRESS),
        "outputs": {"type": "array", "items": OUTPUT},
        "error": _or_null(_JOB_ERROR),
        "urls": _object(dict.fromkeys(("self", "events", "cancel"), _LINK)),
    },
    metrics={"type": ["object", "null"], "additionalProperties": {"type": ["integer", "null"]}},
    metadata={"type": ["object", "string"], "additionalProperties": _TEXT},
    priority={"type": "integer"},
)
# The members that a status implies, and the status that members imply.
JOB["allOf"] = [
    {
        "if": {"properties": {"status": {"enum": ["succeeded", "failed", "canceled", "expired"]}}},
        "then": {"properties": {"completed_at": _TIME, "queue_position": {"type": "null"}}},
        "else": {"properties": {"completed_at": {"type": "null"}, "error": {"type": "null"}}},
    },
    {"if": {"properties": {"status": {"const": "failed"}}}, "then": {"properties": {"error": _JOB_ERROR}}},
]
_ITEM: Schema = {"allOf": [JOB, _object({"create_time": _TIME, "update_time": _TIME})]}
LIST = _object({"jobs": {"type": "array", "items": _ITEM}}, next_cursor={"type": "string", "minLength": 1})
ERROR: Schema = {
    **_object({"error": _object({"code": {"type": "string", "pattern": "^[a-z_]+$"}, "message": _TEXT})}),
    "additionalProperties": False,
}
ERROR["properties"]["error"]["properties"]["details"] = {"type": ["object", "null"]}
ERROR["properties"]["error"]["required"].append("details")
WORKFLOW = _object({"workflow": {"type": "object"}, "format": {"enum": ["api", "save"]}})
ASSET = _object(
    {
        "id": _ID,
        "hash": _HASH,
        "size_bytes": _COUNT,
        "content_type": _TEXT,
        "created_at": _TIME,
        "url": _ABSOLUTE,
        "url_expires_at": _TIME,
    },
    file_path=_or_null(_TEXT),
    created_new={"type": "boolean"},
    expires_at=_or_null(_TIME),
    job_id=_UUID,
)
STATUS_EVENT = _object({"status": _STATUS}, queue_position=_or_null({"type": "integer", "minimum": 1}))
PREVIEW = _object({name: {"type": "string", "minLength": 1} for name in ("node_id", "content_type", "data_base64")})
EVENTS = {"status": STATUS_EVENT, "progress": PROGRESS, "output": OUTPUT, "preview": PREVIEW}

_PART = "[^/?]+"
_ANSWERS: list[tuple[str, str, set[int], Schema]] = [
    ("POST", "/api/v2/jobs", {201}, JOB),
    ("GET", "/api/v2/jobs", {200}, LIST),
    ("GET", f"/api/v2/jobs/{_PART}", {200}, JOB),
    ("GET", f"/api/v2/jobs/{_PART}/workflow", {200}, WORKFLOW),
    ("POST", f"/api/v2/jobs/{_PART}/cancel", {200}, JOB),
    ("POST", "/api/v2/assets", {200, 201}, ASSET),
    ("POST", "/api/v2/assets/from-hash", {200, 201}, ASSET),
    ("GET", f"/api/v2/assets/{_PART}", {200}, ASSET),
]


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator(json.loads(schema))


def check(schema: Schema, body: Any) -> None:
    """Raises `AssertionError` if the body does not have this shape."""
    errors = list(_validator(json.dumps(schema)).iter_errors(body))
    assert not errors, f"{json.dumps(body)[:2000]}: {errors[0]}"


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Checks one answer against the contract, if the contract has a shape for it."""
    if status >= 400:
        check(ERROR, body)
        return
    for known, pattern, statuses, schema in _ANSWERS:
        if known == method and re.fullmatch(pattern, path.partition("?")[0]) and status in statuses:
            check(schema, body)
