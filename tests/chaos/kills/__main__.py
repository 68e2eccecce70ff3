"""``make kills``: gateway, ComfyUI and both are killed at each point of a job's life, for each kind of call.

The points are each write to the journal and each request to ComfyUI, before it and after it. What was killed is started
again, and the caller asks again as a caller would. Promises, checked for each: the caller is told what its kind of call
promises; ComfyUI began to run the prompt no more often than it may; nothing is unfinished in the journal or left in
ComfyUI's queue. Exit status 1 when one is broken. The short form runs in the suite.
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
    parser.add_argument("--victim", action="append", choices=get_args(Victim), help="may be repeated; all without it")
    parser.add_argument("--at-once", type=int, default=4, help="so many runs at the same time (%(default)s)")
    parser.add_argument("--keep", help="keep the folders of wrong runs below this one")
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
