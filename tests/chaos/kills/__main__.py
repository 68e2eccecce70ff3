"""``make kills`` kills the gateway, ComfyUI or both at each point of a job's life, for each kind of call.

The points are before and after each write to the journal and each request to ComfyUI. A killed process is started
again, and the caller repeats its request as callers do. Promises, checked for each run: the caller gets what its kind
of call promises; ComfyUI began to run the prompt no more often than allowed; no job is unfinished in the journal or
left in ComfyUI's queue. Exit status 1 if a promise is broken. The suite runs the short form.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import get_args

from tests.chaos.kills.calls import CALLS
from tests.chaos.kills.matrix import Ended, matrix, table
from tests.chaos.kills.world import Victim


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kills", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--call", default="*", help="kinds of call, as a shell pattern")
    parser.add_argument("--point", default="*", help="points, as a shell pattern on their names")
    parser.add_argument(
        "--victim", action="append", choices=get_args(Victim), help="may be repeated; without it, all of them"
    )
    parser.add_argument("--at-once", type=int, default=4, help="number of runs at the same time (%(default)s)")
    parser.add_argument("--keep", help="keep the folders of wrong runs below this folder")
    arguments = parser.parse_args()
    calls = [call for call in CALLS if fnmatch(call.name, arguments.call)]
    victims: Sequence[Victim] = arguments.victim or get_args(Victim)

    def chosen(point: object) -> bool:
        return fnmatch(str(point), arguments.point)

    ended = asyncio.run(matrix(calls, victims, chosen, at_once=arguments.at_once, keep=arguments.keep, told=tell))
    wrong = [each for each in ended if each.wrong]
    print(f"\n{table(ended)}")
    print(f"{len(ended)} kills, {len(wrong)} wrong")
    return 1 if wrong else 0


def tell(one: Ended) -> None:
    print(one, flush=True)


if __name__ == "__main__":
    sys.exit(main())
