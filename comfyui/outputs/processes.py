"""Ends a program that works on a file for us."""

from __future__ import annotations

from asyncio.subprocess import Process


async def end_process(process: Process) -> None:
    """Kill the process, if it still runs, and return when it has ended.

    asyncio counts it as ended only when its pipes have been read to their ends: `Process.wait` alone would wait for
    ever where a cancelled caller left output in them.
    """
    if process.returncode is None:
        process.kill()
        await process.communicate()
