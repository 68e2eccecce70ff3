"""The keys and folders of stored files. Existing links and folders depend on these: none of them may change.

A store makes a key safe (`comfyui.outputs.stores.store.safe_key`) and puts its own prefix and the caller's before it.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from comfyui.models import OutputFile


def prompt_key(prompt_id: str, file: OutputFile) -> str:
    """The gateway's key: a folder for each prompt. Files of ComfyUI's folders other than output have such keys, too."""
    return _joined(prompt_id, "" if file.type == "output" else file.type, file.subfolder, file.filename)


def node_key(prompt_id: str, file: OutputFile) -> str:
    """A RunPod worker's: a folder for each prompt, and in it one for each node."""
    return _joined(prompt_id, file.node_id, file.subfolder, file.filename)


def task_key(task_id: str, run: int, file: OutputFile) -> str:
    """A Postgres worker's: the same for every attempt of a run, never that of another run or another file."""
    folders = (f"run-{run}" if run else "", file.node_id.replace(":", "."), "" if file.type == "output" else file.type)
    return _joined(task_id, *folders, file.subfolder, file.filename)


def local_path(output_dir: str, file: OutputFile) -> str:
    """A LittleHorse worker's: where ComfyUI wrote the file, when its folder of this type is `output_dir`."""
    return str(PurePosixPath(output_dir) / file.subfolder / file.filename)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
