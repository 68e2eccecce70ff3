"""`make framing`: a long comparison of our HTTP with two other implementations, and the attacks on it.

Exit status 1 if a difference is found or an attack has an effect. The same ``--seed`` gives the same examples.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable

import structlog

from tests.framing import attacks, examples
from tests.framing.reading import Tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.framing", description=__doc__)
    parser.add_argument(
        "--examples", type=int, default=20_000, help="answers to read; a tenth of that for each way over sockets"
    )
    parser.add_argument("--tries", type=int, default=100, help="tries of each attack")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    print(f"seed {options.seed}", flush=True)
    few = max(1, options.examples // 10)
    ways: dict[str, Callable[[], Tally]] = {
        "each corruption at each place": examples.read_each,
        "answers read from bytes": lambda: examples.read_answers(options.examples, options.seed),
        "our client, over sockets": lambda: examples.call_client(few, options.seed),
        "our client, in asyncio's loop": lambda: examples.call_client(few, options.seed + 1, quick=False),
        "a gateway, with splice": lambda: examples.call_gateway(few, options.seed),
        "a gateway, without splice": lambda: examples.call_gateway(few, options.seed, splice=False),
    }
    wrong = False
    for name, run in ways.items():
        started = time.monotonic()
        tally = run()
        print(f"{name}: {tally} [{time.monotonic() - started:.0f} s]", flush=True)
        for difference in tally.differences[:5]:
            print(f"    {difference[:3000]}")
        wrong = wrong or bool(tally.differences)
    for name, attack in attacks.ATTACKS.items():
        effects = asyncio.run(attack(options.tries))
        print(f"{name}: {effects}", flush=True)
        wrong = wrong or not effects.none
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
