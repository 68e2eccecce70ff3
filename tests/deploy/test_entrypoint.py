"""What the entry point checks and prints before it starts any program."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.support.containers import running_container


async def _run_to_end(variables: dict[str, str], *arguments: str) -> tuple[int, str]:
    async with running_container(variables, *arguments) as container:
        status = await container.ended()
        await container.read_to_end()
        return status, "\n".join(container.lines)


def _program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


async def test_an_unknown_role_is_refused_with_the_list_of_roles(bare_container: dict[str, str]) -> None:
    status, said = await _run_to_end(bare_container | {"WORKER": "render"})
    assert status == 64
    assert "WORKER is 'render'; it may be gateway, runpod, littlehorse, postgres or comfyui" in said


async def test_a_role_missing_from_the_image_says_how_to_build_it(bare_container: dict[str, str]) -> None:
    status, said = await _run_to_end(bare_container | {"WORKER": "littlehorse"})
    assert status == 69
    assert '--build-arg ROLES="gateway littlehorse"' in said


async def test_a_container_without_a_gpu_says_how_to_give_it_one(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    _program(tmp_path / "bin", "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    bare_container |= {"REQUIRE_GPU": "true", "PATH": f"{tmp_path}/bin:{bare_container['PATH']}"}
    status, said = await _run_to_end(bare_container)
    assert status == 69
    assert "nvidia-smi says: NVIDIA-SMI has failed" in said
    assert "--gpus all" in said
    assert "nvidia.com/gpu: 1" in said


async def test_an_unwritable_folder_is_named_with_the_user(bare_container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the volume should be")
    status, said = await _run_to_end(bare_container)
    assert status == 73
    assert f"{tmp_path}/data/output cannot be written by user {os.getuid()}: mount a volume" in said


async def test_jobs_are_stored_on_the_volume_in_a_private_folder(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    await _run_to_end(bare_container | {"DEFAULT_TIMEOUT": "soon"})
    assert (tmp_path / "data" / "gateway").stat().st_mode & 0o777 == 0o700


async def test_an_empty_state_dir_creates_no_folder(bare_container: dict[str, str], tmp_path: Path) -> None:
    await _run_to_end(bare_container | {"DEFAULT_TIMEOUT": "soon", "STATE_DIR": ""})
    assert not (tmp_path / "data" / "gateway").exists()


async def test_an_unwritable_state_dir_stops_the_start(bare_container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where the folder should be")
    status, said = await _run_to_end(bare_container | {"STATE_DIR": str(tmp_path / "jobs")})
    assert status == 73
    assert f"STATE_DIR: {tmp_path}/jobs cannot be written by user {os.getuid()}" in said


@pytest.mark.parametrize("backend", ["runpod", "comfyui,runpod"])
async def test_runpod_results_go_to_the_volume_and_an_unwritable_folder_stops_the_start(
    backend: str, bare_container: dict[str, str], tmp_path: Path
) -> None:
    await _run_to_end(bare_container | {"BACKEND": backend, "DEFAULT_TIMEOUT": "soon"})
    assert (tmp_path / "data" / "runpod").stat().st_mode & 0o777 == 0o700
    (tmp_path / "results").write_text("a file where the folder should be")
    status, said = await _run_to_end(
        bare_container | {"BACKEND": backend, "RUNPOD_DATA_DIR": str(tmp_path / "results")}
    )
    assert status == 73
    assert f"RUNPOD_DATA_DIR: {tmp_path}/results cannot be written by user {os.getuid()}" in said


async def test_an_invalid_setting_stops_the_start_with_the_reason(bare_container: dict[str, str]) -> None:
    status, said = await _run_to_end(bare_container | {"DEFAULT_TIMEOUT": "soon"})
    assert status == 64
    assert "DEFAULT_TIMEOUT: " in said


async def test_a_command_is_run_in_the_roles_environment(bare_container: dict[str, str]) -> None:
    status, said = await _run_to_end(
        bare_container, "python", "-c", "import comfyui, sys; print(sys.prefix); sys.exit(3)"
    )
    assert status == 3
    assert str(Path(sys.prefix)) in said or bare_container["VENV_ROOT"] in said


async def test_comfyui_gets_the_folders_of_the_volumes_and_its_own_arguments(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a volume" / "loras").mkdir(parents=True)
    volume = tmp_path / "models"
    (tmp_path / "a volume").rename(volume)
    (volume / "my_kind").mkdir()
    python = tmp_path / "venv" / "comfyui" / "bin"
    python.parent.mkdir(parents=True)
    _program(python, "python", 'echo "arguments: $*"; exit 1')
    status, said = await _run_to_end(
        bare_container | {"MODELS_DIR": str(volume), "COMFYUI_ARGS": "--lowvram --preview-method auto"}
    )
    assert status == 70, "ComfyUI could not be kept running"
    arguments = re.search(r"^comfyui \| arguments: (.*)", said, re.MULTILINE)
    assert arguments is not None
    given = shlex.split(arguments[1])
    assert given[:4] == ["-u", "main.py", "--port", "8188"]
    for option, value in {
        "--output-directory": "data/output",
        "--input-directory": "data/input",
        "--user-directory": "data/user",
        "--extra-model-paths-config": "run/extra_model_paths.yaml",
    }.items():
        assert given[given.index(option) + 1] == str(tmp_path / value)
    assert given[-3:] == ["--lowvram", "--preview-method", "auto"]
    paths = (tmp_path / "run" / "extra_model_paths.yaml").read_text()
    assert f'base_path: "{volume}"' in paths
    assert '"loras": "loras"' in paths
    assert '"my_kind": "my_kind"' in paths


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a b c", "list:1: expected an address and a commit of 40 hex digits"), ("# nothing\n\n", "")],
)
async def test_a_node_list_needs_a_commit_on_each_line(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "list").write_text(content + "\n")
    status, said = await _run("deploy/install_nodes.sh", str(tmp_path / "list"), str(tmp_path), str(tmp_path / "out"))
    assert (status == 0) is (not expected)
    assert expected in said


async def test_nodes_are_added_once_on_top_of_comfyuis_environment(tmp_path: Path) -> None:
    commit = _node(tmp_path / "MyNode")
    (tmp_path / "list").write_text(f"{tmp_path}/MyNode {commit}\n")
    for expected in ("MyNode at", "is installed already"):
        status, said = await _run("deploy/add_nodes.sh", str(tmp_path / "list"), str(tmp_path / "nodes"))
        assert status == 0, said
        assert expected in said
    assert (tmp_path / "nodes/custom_nodes/MyNode/__init__.py").is_file()
    python = tmp_path / "nodes/venv/bin/python"
    status, said = await _run(str(python), "-c", "import yaml, sys; print(yaml.__file__)")
    assert (status, str(tmp_path) in said) == (0, False), "what ComfyUI has already is not installed again"


def _node(folder: Path) -> str:
    """Makes a Git repository with one commit and returns its hash; reads none of the user's Git configuration."""
    import subprocess

    folder.mkdir()
    (folder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (folder / "requirements.txt").write_text("pyyaml>=6\n")
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "node"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


async def _run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "COMFYUI_PYTHON": sys.executable, "HOME": "/nonexistent"},
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_comfyui_left_by_a_killed_worker_is_ended_before_the_next_start(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    left = await asyncio.create_subprocess_exec("sleep", "60", cwd=bare_container["COMFYUI_DIR"])
    elsewhere = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path)
    python = tmp_path / "venv" / "postgres" / "bin"
    python.parent.mkdir()
    _program(python, "python", 'echo "$* COMFY_PATH=$COMFY_PATH"')
    try:
        process = await asyncio.create_subprocess_exec(
            "deploy/run.sh",
            "postgres",
            stdout=asyncio.subprocess.PIPE,
            env=bare_container
            | {
                "VENV": str(python.parent),
                "START_COMFYUI": "false",
                "COMFYUI_COMMAND": "python main.py",
                "COMFY_PATH": bare_container["COMFYUI_DIR"],
            },
        )
        output, _ = await process.communicate()
        assert output.decode() == (
            f"postgres | -m comfyui.workers.postgres_worker COMFY_PATH={bare_container['COMFYUI_DIR']}\n"
        )
        assert await left.wait() == -signal.SIGKILL
        assert elsewhere.returncode is None
    finally:
        elsewhere.kill()
        await elsewhere.wait()


async def test_a_worker_does_not_start_comfyui_when_supervisord_does(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    python = tmp_path / "venv" / "runpod" / "bin"
    python.parent.mkdir()
    _program(python, "python", 'echo "command:$COMFYUI_COMMAND"')
    process = await asyncio.create_subprocess_exec(
        "deploy/run.sh",
        "runpod",
        stdout=asyncio.subprocess.PIPE,
        env=bare_container | {"VENV": str(python.parent), "START_COMFYUI": "true", "COMFYUI_COMMAND": "python main.py"},
    )
    output, _ = await process.communicate()
    assert output.decode() == "runpod | command:\n"


async def test_models_never_fall_back_silently_from_a_volume_to_the_containers_disk(
    bare_container: dict[str, str], tmp_path: Path
) -> None:
    manifest = tmp_path / "models.json"
    manifest.write_text("no manifest")
    volume, absent = tmp_path / "volume", tmp_path / "absent"
    bare_container |= {"MODEL_MANIFEST": str(manifest), "MODEL_VOLUMES": f"{absent} {volume}"}

    volume.write_text("a file where the volume should be")
    status, said = await _run_to_end(bare_container)
    assert status == 73
    assert f"MODEL_MANIFEST: the volume {volume} cannot be written by user {os.getuid()}" in said
    assert "or set MODELS_DIR to the folder" in said
    assert not (tmp_path / "data/models").exists()

    volume.unlink()
    volume.mkdir()
    status, said = await _run_to_end(bare_container)
    assert status == 69  # this manifest cannot be read
    assert f"downloading the models of {manifest} to {volume}/models" in said
    assert not (tmp_path / "data/models").exists()

    volume.joinpath("models").rmdir()
    volume.rmdir()
    _, said = await _run_to_end(bare_container)
    assert f"no volume is mounted, so the models go to {tmp_path}/data/models" in said

    _, said = await _run_to_end(bare_container | {"MODELS_DIR": str(tmp_path / "chosen")})
    assert f"downloading the models of {manifest} to {tmp_path}/chosen" in said
