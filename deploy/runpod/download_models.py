#!/usr/bin/env python3
"""Downloads the models of a manifest into a folder, such as that of a network volume.

    python download_models.py models.manifest.json --models-dir /runpod-volume/models

The manifest is JSON: {"models": [{"path", "url", "sha256"?, "size"?, "token_env"?}]}
    path       below the models folder, such as "loras/x.safetensors"
    url        http(s)://… or s3://bucket/key
    sha256     of the file; a file with another checksum is never put in place
    size       in bytes; an existing file of another size is downloaded again
    token_env  the environment variable with a bearer token for the URL's host

Existing files are left alone. Downloads run side by side, are resumed where they broke off, and are put in place by a
rename when they are complete. S3 uses AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
AWS_ENDPOINT_URL (for servers other than AWS). It needs only Python. Exit status 1: at least one model is still missing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

_CHUNK_BYTES = 1 << 20
_SILENCE_S = 60.0
_SHOW_EVERY_S = 10.0
_LINK_S = 3600
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_printing = threading.Lock()


class ManifestError(Exception):
    """The manifest cannot be used; the message names the entry."""


class DownloadError(Exception):
    """One model could not be downloaded. `final`: another try would end in the same way."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Model:
    path: PurePosixPath
    url: str
    sha256: str | None = None
    size: int | None = None
    token_env: str | None = None


def read_manifest(text: str) -> list[Model]:
    """Reads a manifest. Raises `ManifestError` if it is invalid, or a path would leave the models folder."""
    try:
        entries = json.loads(text)["models"]
        models = [_model(index, entry) for index, entry in enumerate(entries)]
    except json.JSONDecodeError as error:
        raise ManifestError(f"the file is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ManifestError('it must be {"models": [{"path": …, "url": …}, …]}') from error
    paths = [model.path for model in models]
    for path in paths:
        if paths.count(path) > 1:
            raise ManifestError(f"the path {path} must not be listed twice")
    return models


def _model(index: int, entry: Mapping[str, Any]) -> Model:
    where = f"models[{index}]"
    unknown = sorted(set(entry) - {"path", "url", "sha256", "size", "token_env"})
    if unknown:
        raise ManifestError(f"{where}: there is no field {', '.join(unknown)}")
    path = PurePosixPath(str(entry["path"]))
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise ManifestError(f"{where}: path must be folder/name below the models folder, not {entry['path']!r}")
    url = str(entry["url"])
    if urlsplit(url).scheme not in {"http", "https", "s3"} or not urlsplit(url).netloc:
        raise ManifestError(f"{where}: url must be http(s)://… or s3://bucket/key")
    sha256 = entry.get("sha256")
    if sha256 is not None and not _SHA256.fullmatch(str(sha256)):
        raise ManifestError(f"{where}: sha256 must be 64 hexadecimal digits")
    size = entry.get("size")
    if size is not None and not isinstance(size, int):
        raise ManifestError(f"{where}: size must be a number of bytes")
    return Model(path, url, str(sha256).lower() if sha256 else None, size, entry.get("token_env"))


def presigned_s3_url(url: str, environ: Mapping[str, str], *, now: datetime | None = None) -> str:
    """`s3://bucket/key` as a link that works for an hour: AWS signature version 4 in the query.

    Without keys in the environment the link is unsigned, for public buckets.
    """
    bucket, key = urlsplit(url).netloc, url.split("/", 3)[3]
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = urlsplit(environ.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com")
    path = quote(f"{endpoint.path.rstrip('/')}/{bucket}/{key}", safe="/~")
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return f"{endpoint.scheme}://{endpoint.netloc}{path}"
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(_LINK_S),
        "X-Amz-SignedHeaders": "host",
    }
    if token := environ.get("AWS_SESSION_TOKEN"):
        query["X-Amz-Security-Token"] = token
    canonical_query = "&".join(f"{quote(name, safe='')}={quote(query[name], safe='~')}" for name in sorted(query))
    request = f"GET\n{path}\n{canonical_query}\nhost:{endpoint.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signing_key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
    return f"{endpoint.scheme}://{endpoint.netloc}{path}?{canonical_query}&X-Amz-Signature={signature}"


class Downloader:
    """Downloads the models of one manifest into one folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str], *, retries: int, backoff_s: float = 1.0) -> None:
        self._folder = folder
        self._environ = environ
        self._retries = retries
        self._backoff_s = backoff_s

    def missing(self, model: Model) -> bool:
        """Whether the file is missing, or has another size than the manifest says."""
        target = self._folder / model.path
        return not target.is_file() or (model.size is not None and target.stat().st_size != model.size)

    def download(self, model: Model) -> None:
        """Downloads one model and returns when its file is in place. Raises `DownloadError`."""
        target = self._folder / model.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("ab") as lock:
            # If two workers start on one volume, the second waits and finds the file. Some volumes have no locks.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.missing(model):
                part.unlink(missing_ok=True)
                return
            self._with_retries(model, part)
            part.replace(target)
        _etag_file(part).unlink(missing_ok=True)

    def _with_retries(self, model: Model, part: Path) -> None:
        failures = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._check(model, part, resumed=self._fetch(model, part))
                return
            except (DownloadError, OSError, http.client.HTTPException) as error:
                final = isinstance(error, DownloadError) and error.final
                # A try that got further resets the count, because a file of 20 GB may break off often.
                gained = part.exists() and part.stat().st_size > before
                failures = 1 if gained else failures + 1
                if final or failures > self._retries:
                    raise DownloadError(_reason(error)) from error
                _say(f"{model.path}: {_reason(error)}; again")
            time.sleep(self._backoff_s * 2 ** (failures - 1))

    def _fetch(self, model: Model, part: Path) -> bool:
        """Downloads the rest of `part`, or the whole file if that is impossible. Returns True if it resumed."""
        have = part.stat().st_size if part.exists() else 0
        if model.size is not None and have == model.size:
            return True
        etag = _etag_file(part).read_text(encoding="utf-8") if _etag_file(part).exists() else None
        if etag is None and model.sha256 is None:
            # Without a validator, the rest might come from another version of the file.
            have = 0
        with self._open(model, have, etag) as response:
            from_start = response.status != 206
            if from_start:
                _etag_file(part).unlink(missing_ok=True)
                if tag := response.headers.get("ETag"):
                    _etag_file(part).write_text(tag, encoding="utf-8")
            expected = int(response.headers.get("Content-Length") or 0) + (0 if from_start else have)
            with part.open("wb" if from_start else "ab") as file:
                self._copy(model, response, file, expected)
        return not from_start

    def _open(self, model: Model, have: int, etag: str | None) -> http.client.HTTPResponse:
        url = presigned_s3_url(model.url, self._environ) if model.url.startswith("s3://") else model.url
        request = urllib.request.Request(url, headers={"User-Agent": "comfyui-gateway-models"})  # noqa: S310 - checked
        if have:
            request.add_header("Range", f"bytes={have}-")
            if etag is not None and not etag.startswith("W/"):
                request.add_header("If-Range", etag)
        if model.token_env:
            token = self._environ.get(model.token_env)
            if not token:
                raise DownloadError(f"the environment variable {model.token_env} is not set", final=True)
            # The token goes to this host only: stores of models redirect to signed links on other hosts.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_SILENCE_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have:
                return self._open(model, 0, None)
            raise DownloadError(f"HTTP {error.code}", final=error.code not in _RETRIED_STATUSES) from error
        return response

    def _copy(self, model: Model, response: http.client.HTTPResponse, file: IO[bytes], expected: int) -> None:
        shown = time.monotonic()
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            if time.monotonic() - shown > _SHOW_EVERY_S:
                shown = time.monotonic()
                _say(f"{model.path}: {_mb(file.tell())}" + (f" of {_mb(expected)}" if expected else ""))
        if expected and file.tell() < expected:
            raise DownloadError(f"the download ended after {_mb(file.tell())} of {_mb(expected)}")

    @staticmethod
    def _check(model: Model, part: Path, *, resumed: bool) -> None:
        problem = None
        if model.size is not None and part.stat().st_size != model.size:
            problem = f"it has {part.stat().st_size} bytes and not {model.size}"
        elif model.sha256 is not None:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != model.sha256:
                problem = f"its SHA-256 is {found} and not {model.sha256}"
        if problem is not None:
            os.truncate(part, 0)
            _etag_file(part).unlink(missing_ok=True)
            # Another complete download would give the same file.
            raise DownloadError(problem, final=not resumed)


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _say(line: str) -> None:
    with _printing:
        print(line, flush=True)


def _enough_room(folder: Path, models: list[Model]) -> bool:
    needed = sum(model.size or 0 for model in models)
    free = shutil.disk_usage(folder).free
    if needed > free:
        _say(f"{folder} needs {_mb(needed)} but has only {_mb(free)} free")
    return needed <= free


def main() -> int:
    default = os.environ.get("MODELS_DIR", "/runpod-volume/models")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=Path(default),
        help="folder of the models; also set by MODELS_DIR (%(default)s)",
    )
    parser.add_argument("--parallel", type=int, default=4, help="number of downloads at the same time (%(default)s)")
    parser.add_argument("--retries", type=int, default=5, help="number of retries without progress (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list the missing models and download nothing")
    arguments = parser.parse_args()
    try:
        models = read_manifest(arguments.manifest.read_text(encoding="utf-8"))
    except (ManifestError, OSError) as error:
        print(f"{arguments.manifest}: {error}", file=sys.stderr)
        return 2
    downloader = Downloader(arguments.models_dir, os.environ, retries=arguments.retries)
    missing = [model for model in models if downloader.missing(model)]
    for model in models:
        _say(f"{model.path}: {'missing' if model in missing else 'there'}")
    if arguments.dry_run or not missing:
        return 0
    arguments.models_dir.mkdir(parents=True, exist_ok=True)
    if not _enough_room(arguments.models_dir, missing):
        return 1
    failed = 0
    with ThreadPoolExecutor(arguments.parallel) as pool:
        futures = {model: pool.submit(downloader.download, model) for model in missing}
    for model, future in futures.items():
        problem = future.exception()
        failed += problem is not None
        _say(f"{model.path}: {f'FAILED: {problem}' if problem else 'downloaded'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
