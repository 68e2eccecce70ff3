"""A helper process is ended with its caller, even while it still writes output."""

from __future__ import annotations

import asyncio
import sys

from comfyui.outputs.processes import end_process

_WRITES_FOREVER = "import sys\nwhile True: sys.stdout.buffer.write(bytes(1_000_000))"


async def test_a_process_whose_output_was_not_read_completely_is_ended() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WRITES_FOREVER),
        stdout=asyncio.subprocess.PIPE,
        limit=1,  # so that asyncio stops reading from the pipe
    )
    assert process.stdout is not None
    await process.stdout.readexactly(1)
    async with asyncio.timeout(30):
        await end_process(process)
    assert process.returncode


async def test_a_process_that_has_ended_is_left_alone() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    await end_process(process)
    assert process.returncode == 0
