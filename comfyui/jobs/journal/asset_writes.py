"""Writes to the journal of assets: see `comfyui.jobs.journal.writes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Asset(NamedTuple):
    """A file that was uploaded by Comfy API v2, or named by its hash. Its bytes lie in the store of inputs.

    Several assets may have the same bytes; each has its own name and tags.

    Attributes:
        owner: as `comfyui.owners.owner_of` writes it; None without keys.
        blake3, digest: BLAKE3 and SHA-256 of its bytes, in hex; by the latter the store has them.
        file_path: the place that its owner wants below ComfyUI's input folder; "" if not given.
        expires_at: from then on it does not exist.
        lifetime_s: how long it is kept after it was used last.
        idempotency_key: under which the owner sent it.
    """

    id: str
    owner: str | None
    blake3: str
    digest: str
    size: int
    content_type: str
    file_path: str
    tags: tuple[str, ...]
    created_at: float
    expires_at: float
    lifetime_s: float
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class KeepAsset:
    """The asset is there from now on. Place: its id is new."""

    asset: Asset


@dataclass(frozen=True, slots=True)
class UseAssets:
    """These assets were of use, and none expires before its lifetime is over again. Place: there is one of them.

    Attributes:
        lifetime_s: they have this lifetime at least.
    """

    ids: tuple[str, ...]
    at: float
    lifetime_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DropAssets:
    """These assets are there no more. Place: one of them was."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpireAssets:
    """Removes at most this number of assets that expire by then. Place: the number of removed ones."""

    at: float
    most: int


class OutputFacts(NamedTuple):
    """Facts about a file that a run of a job has made.

    Attributes:
        id: see `comfyui.assets.outputs.output_id`.
        size: in bytes.
        blake3: None until all of its bytes have passed through the gateway.
    """

    prompt_id: str
    run: int
    id: str
    size: int
    blake3: str | None


@dataclass(frozen=True, slots=True)
class KnowOutputs:
    """Facts about outputs of one run; a known hash stays. Place: it is the job's present run."""

    prompt_id: str
    run: int
    facts: tuple[OutputFacts, ...]
