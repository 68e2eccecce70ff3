"""The command line: `python -m comfyui.engine --help`."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions, FaultError, faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comfyui.engine",
        description=(
            "A simulation of ComfyUI, with its API, real files and procedural pictures, but without GPU and models."
        ),
        epilog=faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = EngineOptions()
    parser.add_argument("--host", "--listen", default=defaults.host, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8188, help="port; 0 for any free one (%(default)s)")
    parser.add_argument(
        "--comfyui-version",
        choices=(OLD_VERSION, NEW_VERSION),
        default=defaults.comfyui_version,
        help="the version of ComfyUI to simulate (%(default)s)",
    )
    parser.add_argument(
        "--base-directory",
        type=Path,
        help="folder for input, output, temp and user; by default a temporary one, which is removed at the end",
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=defaults.step_seconds,
        help="seconds that a sampling step takes (%(default)s)",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=JSON]",
        help="switch a fault on from the start; see below",
    )
    parser.add_argument(
        "--faults-file", type=Path, help="file that keeps the faults over a crash; if it exists, --fault is ignored"
    )
    parser.add_argument(
        "--front-end-root",
        type=Path,
        help="folder of ComfyUI's web frontend; by default a page about the engine is shown",
    )
    parser.add_argument(
        "--executions-file",
        type=Path,
        help="file that gets a line for each prompt that begins to run, also over a crash",
    )
    parser.add_argument("--verbose", action="store_true", help="log each step")
    return parser


async def _serve(options: EngineOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Engine(options) as engine:
        print(f"simulated ComfyUI {options.comfyui_version} at {engine.url} (a simulation, no GPU)", flush=True)
        await stop.wait()


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    # The same as in ComfyUI: a native fault prints its place.
    faulthandler.enable(all_threads=False)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    try:
        switched_on: dict[str, Any] = {}
        for argument in arguments.fault:
            switched_on |= faults.parse_argument(argument)
        asyncio.run(
            _serve(
                EngineOptions(
                    host=arguments.host,
                    port=arguments.port,
                    comfyui_version=arguments.comfyui_version,
                    base_directory=arguments.base_directory,
                    front_end_root=arguments.front_end_root,
                    step_seconds=arguments.step_seconds,
                    faults=switched_on,
                    faults_file=arguments.faults_file,
                    executions_file=arguments.executions_file,
                    own_process=True,
                )
            )
        )
    except FaultError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"cannot listen on {arguments.host}:{arguments.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
