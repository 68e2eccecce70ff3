#!/usr/bin/env python3
"""Runs a workflow on a RunPod endpoint and saves its files.

    RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=… python submit.py workflow.json --input photo.png --input masks/ --output out/

The workflow is in ComfyUI's API format. Inputs are files, or folders whose files keep their paths below the folder.
Ctrl-C cancels the job. Exit status: 0 completed; 1 failed, cancelled or timed out, or none of its files could be saved;
2 it could not be submitted; 3 completed in part: some of its files could not be saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from job_files import JobFileError, job_input, open_files, save_output, status_of

_LARGEST_BODY = 10_000_000
_ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
_REQUEST_S = 60.0
_PATIENT_TRIES = 5
_NO_FILES = "the result has no files"


class ApiError(Exception):
    """RunPod refused a request or cannot be reached. `temporary`: the same request may succeed later."""

    def __init__(self, reason: str, *, temporary: bool) -> None:
        super().__init__(reason)
        self.temporary = temporary


class Endpoint:
    """One serverless endpoint."""

    def __init__(self, api: str, endpoint_id: str, api_key: str) -> None:
        self._url = f"{api.rstrip('/')}/{endpoint_id}"
        self._api_key = api_key

    def run(self, body: bytes) -> str:
        """Queues a job; returns its id."""
        answer = self._request("POST", "run", body)
        return str(answer["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        return self._request("GET", f"status/{job_id}")

    def cancel(self, job_id: str) -> None:
        self._request("POST", f"cancel/{job_id}", b"")

    def _request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/{path}", data=body, headers=headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S) as response:  # noqa: S310 - the user's own address
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            raise ApiError(f"HTTP {error.code} {text}", temporary=error.code == 429 or error.code >= 500) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ApiError(str(getattr(error, "reason", error)), temporary=True) from error


def wait_for(endpoint: Endpoint, job_id: str, *, timeout_s: float, interval_s: float) -> dict[str, Any]:
    """Waits for the job and returns its last status. After `timeout_s` it cancels the job and returns TIMED_OUT."""
    deadline = time.monotonic() + timeout_s
    shown, failures = "", 0
    while True:
        try:
            answer = endpoint.status(job_id)
            failures = 0
        except ApiError as error:
            failures += 1
            if not error.temporary or failures > _PATIENT_TRIES:
                raise
            answer = {"status": f"not known ({error})"}
        line = _progress(answer)
        if line != shown:
            print(line, flush=True)
            shown = line
        if answer["status"] in _ENDED:
            return answer
        if time.monotonic() + interval_s > deadline:
            endpoint.cancel(job_id)
            return {"status": "TIMED_OUT", "error": f"the job did not finish within {timeout_s:g} s and was cancelled"}
        time.sleep(interval_s)


def _progress(answer: dict[str, Any]) -> str:
    state, output = answer["status"], answer.get("output")
    if state != "IN_PROGRESS" or not isinstance(output, dict):
        return str(state)
    return f"{state} {100 * float(output.get('fraction', 0)):3.0f}% {output.get('message', '')}".rstrip()


def default_of(name: str) -> str | None:
    """The value from the environment, or from defaults.env beside this script (or the file RUNPOD_DEFAULTS)."""
    if os.environ.get(name):
        return os.environ[name]
    file = Path(os.environ.get("RUNPOD_DEFAULTS") or Path(__file__).with_name("defaults.env"))
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return said.get(name) or None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--input", type=Path, action="append", default=[], help="a file or folder; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the results (%(default)s)")
    parser.add_argument(
        "--endpoint",
        default=default_of("RUNPOD_ENDPOINT_ID"),
        help="id of the endpoint; also set by RUNPOD_ENDPOINT_ID (%(default)s)",
    )
    parser.add_argument("--api", default="https://api.runpod.ai/v2", help="address of RunPod's API (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds after which the job is cancelled (%(default)s)"
    )
    parser.add_argument("--interval", type=float, default=2, help="seconds between two status requests (%(default)s)")
    parser.add_argument("--no-open", action="store_true", help="do not open the results")
    return parser


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    api_key = os.environ.get("RUNPOD_API_KEY")
    if not api_key or not arguments.endpoint:
        parser.error("set RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID")
    endpoint = Endpoint(arguments.api, arguments.endpoint, api_key)
    try:
        body = json.dumps({"input": job_input(arguments.workflow, arguments.input)}).encode()
        if len(body) > _LARGEST_BODY:
            raise JobFileError(f"the inputs make a request of {len(body) / 1e6:.1f} MB, RunPod takes 10: use URLs")
        job_id = endpoint.run(body)
    except (ApiError, JobFileError) as error:
        print(f"not submitted: {error}", file=sys.stderr)
        return 2
    print(f"job {job_id}", flush=True)
    try:
        answer = wait_for(endpoint, job_id, timeout_s=arguments.timeout, interval_s=arguments.interval)
    except KeyboardInterrupt:
        endpoint.cancel(job_id)
        print("cancelled", file=sys.stderr)
        return 1
    except ApiError as error:
        print(f"job {job_id}: its status is unknown now: {error}", file=sys.stderr)
        return 1
    if answer["status"] != "COMPLETED":
        print(f"{answer['status']}: {answer.get('error') or 'no reason was given'}", file=sys.stderr)
        return 1
    output = answer.get("output")
    output = output if isinstance(output, dict) else {}
    if output.get("error"):
        print(f"FAILED: {output['error']}", file=sys.stderr)
        return 1
    saved, missing = save_output(output, arguments.output)
    print("\n".join(f"saved {path}" for path in saved) or "no file was saved" if missing or saved else _NO_FILES)
    if not arguments.no_open:
        open_files(saved)
    return status_of(saved, missing)


if __name__ == "__main__":
    sys.exit(main())
