"""`ComfyUIProcess` on real processes: mostly the embedded engine, and small scripts where a child must misbehave."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from pathlib import Path

import pytest

from comfyui.exceptions import ComfyUIConnectionError
from comfyui.servers import ports
from comfyui.servers.process import ComfyUIProcess, ProcessState
from tests.support.ports import free_port

SCRIPT_THAT_IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def engine_process(*, kept_lines: int = 200) -> ComfyUIProcess:
    port = free_port()
    command = [sys.executable, "-m", "comfyui.engine", "--port", str(port)]
    return ComfyUIProcess(command, f"127.0.0.1:{port}", kept_lines=kept_lines)


def script_process(script: str, **options: float) -> ComfyUIProcess:
    command = [sys.executable, "-c", script]
    return ComfyUIProcess(
        command,
        f"127.0.0.1:{free_port()}",
        start_timeout_s=options.get("start_timeout_s", 30),
        stop_grace_s=options.get("stop_grace_s", 10),
        max_crashes=int(options.get("max_crashes", 0)),
    )


def is_alive(pid: int) -> bool:
    """A zombie counts as dead: the parent that should reap it is gone."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


async def until_dead(pid: int) -> None:
    """SIGKILL was sent already; the kernel takes a moment."""
    async with asyncio.timeout(30):
        while is_alive(pid):
            await asyncio.sleep(0.005)


async def until(process: ComfyUIProcess, state: ProcessState) -> None:
    async with asyncio.timeout(20):
        while process.state is not state:
            await process.wait_for_change()


async def test_the_process_is_ready_when_it_answers_and_ends_with_its_context() -> None:
    async with engine_process() as process:
        assert process.reason == "starting"
        await process.wait_until_ready()
        pid = process.pid
        assert pid is not None
        assert is_alive(pid)
        assert "simulated ComfyUI" in process.recent_lines[0]
    assert not is_alive(pid)
    with pytest.raises(ComfyUIConnectionError, match="does not run: stopped"):
        await process.wait_until_ready()


async def test_a_crashed_process_is_noticed_and_started_again() -> None:
    async with engine_process() as process:
        await process.wait_until_ready()
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(process, ProcessState.CRASHED)
        assert process.reason == "it was ended by SIGKILL"
        await process.wait_until_ready()
        assert process.pid != first
        assert process.crashes == 1


async def test_restart_replaces_a_living_child_and_counts_no_crash() -> None:
    async with engine_process() as process:
        await process.wait_until_ready()
        first = process.pid
        assert first is not None
        await process.restart()
        assert not is_alive(first)
        await process.wait_until_ready()
        assert process.pid != first
        assert process.crashes == 0


async def test_a_process_that_keeps_ending_is_given_up_with_its_last_output() -> None:
    script = "import sys; print('out'); print('CUDA is not there', file=sys.stderr); sys.exit(7)"
    async with script_process(script, max_crashes=1) as process:
        with pytest.raises(ComfyUIConnectionError, match="exit status 7, 2 times in a row"):
            await process.wait_until_ready()
        assert process.state is ProcessState.FAILED
        assert set(process.recent_lines) == {"out", "CUDA is not there"}


async def test_a_missing_command_is_reported_as_the_reason() -> None:
    process = ComfyUIProcess(["/nonexistent/python", "main.py"], f"127.0.0.1:{free_port()}", max_crashes=0)
    async with process:
        with pytest.raises(ComfyUIConnectionError, match="cannot be started: No such file or directory"):
            await process.wait_until_ready()


async def test_an_internal_error_fails_the_callers_that_wait() -> None:
    process = ComfyUIProcess(["with\0null"], f"127.0.0.1:{free_port()}")
    async with process:
        with pytest.raises(ComfyUIConnectionError, match="its log has the reason"):
            await process.wait_until_ready()


async def test_a_process_that_never_answers_is_stopped_after_the_start_timeout() -> None:
    async with script_process(
        "import time; print('loading', flush=True); time.sleep(600)", start_timeout_s=1
    ) as process:
        with pytest.raises(ComfyUIConnectionError, match="did not answer within 1 s"):
            await process.wait_until_ready()
        assert process.pid is None


async def test_a_process_that_ignores_sigterm_is_killed_with_its_children() -> None:
    process = script_process(SCRIPT_THAT_IGNORES_SIGTERM, stop_grace_s=0.2)
    async with process:
        async with asyncio.timeout(20):
            while not process.recent_lines:
                await asyncio.sleep(0.01)
        pid = process.pid
        assert pid is not None
        grandchild = int(process.recent_lines[0].split()[1])
    assert not is_alive(pid)
    await until_dead(grandchild)


async def test_children_of_a_crashed_process_are_ended_too() -> None:
    script = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print("child", child.pid, flush=True)
os._exit(1)
"""
    async with script_process(script) as process:
        await until(process, ProcessState.FAILED)
        await until_dead(int(process.recent_lines[0].split()[1]))


async def test_the_kept_output_is_bounded() -> None:
    script = r"""
import sys
for number in range(1000):
    sys.stdout.write(f"\r{number}%")
sys.stdout.write("\n" + "x" * 500_000 + "\nlast words of \xe9 and no newline")
"""
    async with script_process(script) as process:
        await until(process, ProcessState.FAILED)
        lines = process.recent_lines
        assert len(lines) == 200
        assert max(map(len, lines)) <= 2000
        assert lines[-1].startswith("last words of")


async def test_the_process_and_its_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import subprocess, sys, time\n"
        "more = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('pids', __import__('os').getpid(), more.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys\n"
        "from comfyui.servers.process import ComfyUIProcess\n"
        "async def main():\n"
        f"    async with ComfyUIProcess([sys.executable, {str(child)!r}], '127.0.0.1:{free_port()}', on_line=show):\n"
        "        await asyncio.sleep(600)\n"
        "def show(line): print(line, flush=True)\n"
        "asyncio.run(main())\n",
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        pids = [int(pid) for pid in (await parent.stdout.readline()).split()[1:]]
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    for pid in pids:
        await until_dead(pid)


async def test_a_port_in_use_is_an_error_that_names_the_other_program() -> None:
    """Regression: a worker used the ComfyUI that a killed worker had left running on its port."""
    async with engine_process() as other:
        await other.wait_until_ready()
        address = other._client.base_url
        command = [sys.executable, "-m", "comfyui.engine", "--port", str(address.port)]
        process = ComfyUIProcess(command, f"127.0.0.1:{address.port}", max_crashes=0, port_patience_s=0.1)
        async with process:
            with pytest.raises(ComfyUIConnectionError, match=rf"port {address.port} is taken by process \d+ \(python"):
                await process.wait_until_ready()


async def test_another_program_on_the_port_does_not_make_the_process_ready() -> None:
    """The port is free when the process starts, and another program takes it first."""
    async with engine_process() as other:
        await other.wait_until_ready()
        address = other._client.base_url
        looks = itertools.count()

        def free_at_first(host: str, port: int) -> list[ports.Holder]:
            return ports.holders(host, port) if next(looks) else []

        process = ComfyUIProcess(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            f"127.0.0.1:{address.port}",
            max_crashes=0,
            start_timeout_s=1,
            holders_of=free_at_first,
        )
        async with process:
            with pytest.raises(
                ComfyUIConnectionError, match=f"did not answer within 1 s; port {address.port} is taken"
            ):
                await process.wait_until_ready()


async def test_a_cancelled_stop_still_gives_the_process_its_time(tmp_path: Path) -> None:
    """RunPod's SDK cancels every task at its end, including the task that stops ComfyUI."""
    saved = tmp_path / "saved"
    script = f"""
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path({str(saved)!r}).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""
    process = script_process(script)
    async with process:
        async with asyncio.timeout(20):
            while not process.recent_lines:
                await asyncio.sleep(0.01)
        ending = asyncio.create_task(process.__aexit__())
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        async with asyncio.timeout(30):
            while process.pid is not None:
                await asyncio.sleep(0.01)
    assert saved.exists()


async def test_the_cause_of_death_is_kept_with_the_last_output() -> None:
    script = "import os, signal; print('GPU is lost', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    async with script_process(script) as process:
        await until(process, ProcessState.FAILED)
        assert process.last_death is not None
        assert process.last_death.how == "it was ended by SIGSEGV"
        assert process.last_death.lines == ("GPU is lost",)
        assert not process.last_death.was_ready
