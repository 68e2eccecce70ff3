"""Assets as the contract has them: outputs of jobs, and uploads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from comfyui.assets.job_outputs import FoundOutput, Outputs
from comfyui.assets.outputs import JobOutput
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.asset_writes import Asset, OutputFacts
from comfyui.jobs.journal.records import JobRecord
from comfyui.models import PromptResult
from comfyui.web.front.gateway_state import GatewayState
from comfyui.web.v2.shapes import Address, expires_at, time_of

JSON = dict[str, Any]

ASSETS = "/api/v2/assets"


class End(NamedTuple):
    """The end of a job, from memory. `facts`: about its files, if they are known."""

    result: PromptResult
    facts: Mapping[str, OutputFacts]


async def outputs_of(gateway: GatewayState, look: Look, address: Address) -> list[JSON]:
    """The job's outputs so far."""
    return [] if look.record is None else (await made_by(gateway, look.record, look, address))[0]


async def made_by(
    gateway: GatewayState, record: JobRecord, look: Look, address: Address, end: End | None = None
) -> tuple[list[JSON], Mapping[str, Sequence[str]]]:
    """The same, and ComfyUI's messages about outputs that it left out. `end`: if it is known already."""
    outputs = gateway.assets.outputs
    made = await outputs.of(record, look, result=None if end is None else end.result)
    facts = await outputs.facts(record, made, {} if end is None else end.facts)
    return _outputs_json(record, made, facts, address), made.node_errors


async def outputs_of_all(gateway: GatewayState, records: Sequence[JobRecord], address: Address) -> list[list[JSON]]:
    """The same as `outputs_of` for each of them, with the known sizes: no server is asked for a list."""
    made, facts = await gateway.assets.outputs.of_all(records)
    return [_outputs_json(record, one, facts, address) for record, one in zip(records, made, strict=True)]


def _outputs_json(record: JobRecord, made: Outputs, facts: Mapping[str, OutputFacts], address: Address) -> list[JSON]:
    until = time_of(expires_at(record, address.keep_s))
    return [output_json(record.prompt_id, one, facts.get(one.id), until, address) for one in made.outputs]


def output_json(
    prompt_id: str, output: JobOutput, facts: OutputFacts | None, until: str | None, address: Address
) -> JSON:
    """An Output. `until`: when its job may be forgotten."""
    return {
        "node_id": output.node_id,
        "name": output.name,
        "type": output.kind,
        "content_type": output.content_type,
        "size_bytes": facts.size if facts else 0,
        "id": output.id,
        "hash": _hash(facts.blake3 if facts else None),
        "url": _url(output.id, address),
        "url_expires_at": until,
        "job_id": prompt_id,
    }


def output_asset_json(found: FoundOutput, facts: OutputFacts | None, address: Address) -> JSON:
    """An Asset that a job has made."""
    record, output = found.record, found.output
    until = expires_at(record, address.keep_s)
    return {
        "id": output.id,
        "hash": _hash(facts.blake3 if facts else None),
        "size_bytes": facts.size if facts else 0,
        "content_type": output.content_type,
        "created_at": time_of(record.ended_at or record.started_at or record.created_at),
        "expires_at": time_of(until),
        "url": _url(output.id, address),
        "url_expires_at": time_of(until),
        "job_id": record.prompt_id,
    }


def asset_json(asset: Asset, address: Address) -> JSON:
    """An Asset that was uploaded."""
    return {
        "id": asset.id,
        "hash": _hash(asset.blake3),
        "size_bytes": asset.size,
        "content_type": asset.content_type,
        "file_path": asset.file_path or None,
        "tags": list(asset.tags),
        "created_at": time_of(asset.created_at),
        "expires_at": time_of(asset.expires_at),
        "url": _url(asset.id, address),
        "url_expires_at": time_of(asset.expires_at),
    }


def _url(asset_id: str, address: Address) -> str:
    return f"{address.public}{ASSETS}/{asset_id}/content"


def _hash(digest: str | None) -> str | None:
    return None if digest is None else f"blake3:{digest}"
