"""Assets of Comfy API v2: uploads, and what jobs have made, by their ids."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from comfyui.assets.adopting import adopted
from comfyui.assets.job_outputs import FoundOutput
from comfyui.assets.references import hash_of
from comfyui.assets.rooms import Assets
from comfyui.exceptions import BodyTooLargeError, Breach, ComfyUINotFoundError, ContractError, RequestError
from comfyui.jobs.journal.asset_writes import Asset, OutputFacts
from comfyui.web.api.uploads import UploadForms
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.v2 import asset_fields, contents
from comfyui.web.v2.bodies import idempotency_key_of, object_of
from comfyui.web.v2.jobs import address_of, caller_of
from comfyui.web.v2.outputs import asset_json, output_asset_json

_UNKNOWN = "there is no such asset"
_NO_STORE = {"Cache-Control": "no-store"}
_FORMS = UploadForms(None)


async def upload(request: Request) -> Response:
    """Stores a file: 201 if its bytes are new to the caller, otherwise 200. Each upload has its own record."""
    assets, origin = _assets(request), caller_of(request)
    gateway_of(request).handler.refuse_when_draining()
    key, tags = idempotency_key_of(request), list[bytes]()
    try:
        async with (
            assets.uploaded.claims.claimed(origin.owner, key),
            _FORMS.posted_asset(request, assets.uploaded.max_bytes, tags) as posted,
        ):
            new = replace(asset_fields.of_form(posted.texts, tags), idempotency_key=key)
            expected = posted.texts.get("expected_hash")
            if expected and hash_of(expected) != posted.blake3:
                raise ContractError(
                    Breach.HASH_MISMATCH, f"expected_hash does not match the file, whose hash is blake3:{posted.blake3}"
                )
            asset, is_new = await assets.uploaded.add(new, posted.content, posted.blake3, origin)
    except (ContractError, BodyTooLargeError):
        raise
    except RequestError as error:
        raise ContractError(Breach.INVALID_REQUEST, error.detail) from error
    return _taken(request, asset, is_new=is_new)


async def from_hash(request: Request) -> Response:
    """A record over bytes that are here: 201 for a new one, 200 for one that there was."""
    pieces = [chunk async for chunk in request.stream()]
    body = object_of(pieces, gateway_of(request).options.limits)
    given = body.get("hash")
    digest = hash_of(given) if isinstance(given, str) else None
    assets, origin = _assets(request), caller_of(request)
    found = None
    if digest is not None:
        new = asset_fields.of_json(body)
        found = await assets.uploaded.again(new, digest, origin)
        if found is None and (made := await assets.outputs.by_hash(digest, origin)) is not None:
            asset = await adopted(new, digest, made, assets.outputs, assets.uploaded, origin)
            found = None if asset is None else (asset, True)
    if found is None:
        raise ContractError(Breach.BLOB_NOT_FOUND, "hash: the gateway has no file with this hash; upload it")
    return _taken(request, found[0], is_new=found[1], has_new_bytes=False)


async def by_hash(request: Request) -> Response:
    """200 if the caller can have an asset by this hash, otherwise 404; nothing else is said."""
    digest = hash_of(request.path_params["hash"])
    assets, origin = _assets(request), caller_of(request)
    found = digest is not None and (
        bool(await assets.uploaded.by_hash(digest, origin)) or await assets.outputs.by_hash(digest, origin) is not None
    )
    return Response(status_code=200 if found else 404, headers=_NO_STORE)


async def asset(request: Request) -> Response:
    """The record of an asset."""
    found = await _find(request)
    address = address_of(request, gateway_of(request))
    if isinstance(found, Asset):
        return json_response(200, asset_json(found, address), _NO_STORE)
    return json_response(200, output_asset_json(found, await _facts(request, found), address), _NO_STORE)


async def content(request: Request) -> Response:
    """Its bytes."""
    assets, found = _assets(request), await _find(request)
    if isinstance(found, Asset):
        return await contents.of_upload(request, assets.uploaded, found)
    assets.fresh.drop(found.record.prompt_id)
    facts, deliverer = await _facts(request, found), gateway_of(request).deliverer
    return await contents.of_output(request, assets.outputs, found, facts, deliverer)


async def delete(request: Request) -> Response:
    """Removes the record of an upload; its bytes go when no other record and no job has them."""
    assets, origin, asset_id = _assets(request), caller_of(request), request.path_params["asset_id"]
    if await assets.outputs.find(asset_id, origin) is not None:
        raise ContractError(
            Breach.ASSET_IN_USE, "the asset is an output of a job; it is kept as long as the job, and removed with it"
        )
    if not await assets.uploaded.drop(asset_id, origin):
        raise ComfyUINotFoundError(_UNKNOWN)
    return Response(status_code=204)


async def _find(request: Request) -> Asset | FoundOutput:
    """The asset in the path. Raises `ComfyUINotFoundError`, also if the caller may not see it."""
    assets, origin, asset_id = _assets(request), caller_of(request), request.path_params["asset_id"]
    found = await assets.outputs.find(asset_id, origin) or await assets.uploaded.find(asset_id, origin)
    if found is None:
        raise ComfyUINotFoundError(_UNKNOWN)
    return found


async def _facts(request: Request, found: FoundOutput) -> OutputFacts | None:
    return (await _assets(request).outputs.facts(found.record, found.made)).get(found.output.id)


def _taken(request: Request, asset: Asset, *, is_new: bool, has_new_bytes: bool | None = None) -> Response:
    shown = asset_json(asset, address_of(request, gateway_of(request)))
    shown["created_new"] = is_new if has_new_bytes is None else has_new_bytes
    return json_response(201 if is_new else 200, shown, _NO_STORE)


def _assets(request: Request) -> Assets:
    return gateway_of(request).assets
