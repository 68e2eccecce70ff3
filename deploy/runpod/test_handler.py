#!/usr/bin/env python3
"""Tries the RunPod worker on this machine, without RunPod: runs one workflow through the worker's own handler.

    python deploy/runpod/test_handler.py workflow.json --input photo.png --output out/

It uses the ComfyUI at COMFYUI_SERVER_ADDRESS, or starts one with COMFYUI_COMMAND as the image does; with --engine it
uses the embedded engine, a simulation that needs neither GPU nor models. It needs neither RunPod's SDK nor an account.
Exit status: 0 the job succeeded, 1 it failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from job_files import JobFileError, job_input, open_files, save_output, status_of

from comfyui.exceptions import SettingsError
from comfyui.logs import configure_logging
from comfyui.settings import ENV_FILE, load
from comfyui.workers.runpod.settings import RunPodSettings
from comfyui.workers.runpod.worker import RunPodWorker


class PrintingSdk:
    """Replaces RunPod's SDK: prints progress to the terminal."""

    def start(self, config: dict[str, Any]) -> None:
        raise NotImplementedError("one job is run, no loop")

    def progress_update(self, job: Mapping[str, Any], progress: Any) -> None:
        print(f"{job['id']}: {100 * progress['fraction']:3.0f}% {progress['message']}", flush=True)


async def _run(settings: RunPodSettings, given: dict[str, Any]) -> dict[str, Any]:
    worker = RunPodWorker(settings, PrintingSdk())
    try:
        return await worker.handle({"id": f"local-{uuid.uuid4().hex[:8]}", "input": given})
    finally:
        await worker.close()


def _with_engine(settings: RunPodSettings) -> RunPodSettings:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = (sys.executable, "-m", "comfyui.engine", "--port", str(port))
    root = Path(__file__).resolve().parents[2]
    update = {"comfyui_command": command, "comfyui_server_address": (f"127.0.0.1:{port}",), "comfyui_dir": root}
    return settings.model_copy(update=update)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--input", type=Path, action="append", default=[], help="a file or folder; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the results (%(default)s)")
    parser.add_argument("--engine", action="store_true", help="use the embedded engine, a simulation")
    parser.add_argument("--no-open", action="store_true", help="do not open the results")
    arguments = parser.parse_args()
    try:
        settings = load(RunPodSettings, env_file=ENV_FILE)
        given = job_input(arguments.workflow, arguments.input)
    except (JobFileError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    configure_logging(settings.log_level, settings.log_output)
    answer = asyncio.run(_run(_with_engine(settings) if arguments.engine else settings, given))
    if "error" in answer:
        print(answer["error"], file=sys.stderr)
        return 1
    saved, missing = save_output(answer, arguments.output)
    shown = [{**image, "data": f"{len(image.get('data') or '')} characters"} for image in answer["images"]]
    print(json.dumps({**answer, "images": shown}, indent=2))
    print("\n".join(f"saved {path}" for path in saved))
    if not arguments.no_open:
        open_files(saved)
    return status_of(saved, missing)


if __name__ == "__main__":
    sys.exit(main())
