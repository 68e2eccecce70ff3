"""Code and docs refer only to files, tests, settings, decisions and traps that exist in this repository."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from config import Settings

ROOT = Path(__file__).parents[1]
_THIS = Path(__file__).relative_to(ROOT)

# Matches a path with a folder, or the name of a page; skips names with a variable part (of a shell or Python).
_FILE = re.compile(r"(?<![\w./:@{}$%*~<>+-])((?:[\w.-]+/)*[\w-][\w.-]*\.(?:md|py|toml|sh|yaml|conf))(?![\w/*{<]|\.\w)")
_ROOMS = ("comfyui/", "tests/", "docs/", "deploy/", "examples/", "benchmarks/", "requirements/", ".ci/", "adr/")
_TRAP = re.compile(r"\btraps? (\d+)(?:(?:, | and | to )(\d+))*")
_ADR = re.compile(r"\bADR (\d+)")
_TEST = re.compile(r"`{1,2}(test_\w+)`{1,2}")


@cache
def tracked() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return tuple(Path(name) for name in listed.split("\0") if name and (ROOT / name).exists())


@cache
def texts() -> dict[Path, str]:
    kinds = {".py", ".md", ".sh", ".toml", ".yaml", ".conf"}
    return {
        path: (ROOT / path).read_text()
        for path in tracked()
        if path != _THIS and (path.suffix in kinds or path.name in {"Makefile", "Dockerfile"})
    }


def prose(path: Path, text: str) -> str:
    """The text that may refer to files: comments and docstrings of a Python file, or the whole of any other file."""
    if path.suffix != ".py":
        return text
    return "\n".join(re.findall(r'""".*?"""|(?<!["\'])#[^\n]*', text, re.DOTALL))


def missing_files(path: Path, text: str) -> list[str]:
    names = {item.as_posix() for item in tracked()}
    pages = {item.name for item in tracked()}
    missing = []
    for name in _FILE.findall(prose(path, text)):
        if name.endswith(".md") and "/" not in name:
            known = name in pages
        elif name.startswith(_ROOMS) or (name.endswith(".md") and not name.startswith("/")):
            beside = (ROOT / path.parent / name).resolve()
            known = name in names or beside.exists() or any(item.endswith("/" + name) for item in names)
        else:
            continue  # a file of ComfyUI or of a user, or a module named without its folder
        if name.startswith("deploy/comfyui/"):
            continue  # ComfyUI itself is put there
        if not known:
            missing.append(name)
    return missing


def test_every_named_file_exists() -> None:
    assert {str(path): names for path, text in texts().items() if (names := missing_files(path, text))} == {}


@pytest.mark.parametrize(
    "text", ["# see docs/nowhere.md", '"""The contract is in SPEC.md."""', "# comfyui/no_such.py has it"]
)
def test_a_reference_to_a_missing_file_is_found(text: str) -> None:
    assert missing_files(Path("comfyui/client.py"), text)


def test_every_named_trap_is_on_the_page_of_traps() -> None:
    page = (ROOT / "docs" / "comfyui.md").read_text().partition("## Traps")[2]
    known = set(re.findall(r"^(\d+)\. \*\*", page, re.MULTILINE))
    named = {
        number for text in texts().values() for match in _TRAP.finditer(text) for number in match.groups() if number
    }
    assert len(named) > 8
    assert named <= known


def test_every_named_decision_exists() -> None:
    known = {int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")}
    named = {int(number) for text in texts().values() for number in _ADR.findall(text)}
    assert named
    assert named <= known


def test_every_test_that_the_docs_name_exists() -> None:
    defined = {
        name for path, text in texts().items() if path.suffix == ".py" for name in re.findall(r"def (test_\w+)", text)
    }
    modules = {path.stem for path in tracked()}
    named = {name for path, text in texts().items() if path.suffix == ".md" for name in _TEST.findall(text)}
    assert named
    assert named <= defined | modules


# Names of Linux, LittleHorse and uvicorn.
_FOREIGN = {"SO_RCVLOWAT", "TASK_ERROR", "FORWARDED_ALLOW_IPS"}
# Settings of Open WebUI and LibreChat.
_FOREIGN |= {"DALLE_API_KEY", "DALLE_REVERSE_PROXY", "ENABLE_FORWARD_USER_INFO_HEADERS"}
_FOREIGN |= {"IMAGE_GEN_OAI_API_KEY", "IMAGE_GEN_OAI_BASEURL"}


def test_every_setting_that_the_docs_spell_out_exists() -> None:
    """Each name in capitals is read by the gateway, a worker, a script or the image, or is listed in `_FOREIGN`."""
    read = {word.upper() for path, text in texts().items() if path.suffix != ".md" for word in re.findall(r"\w+", text)}
    spelled = {
        (str(path), name)
        for path, text in texts().items()
        if path.suffix == ".md" and path.name != "CHANGELOG.md"
        for name in re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text)
    }
    assert len(spelled) > len(Settings.model_fields)
    assert {(path, name) for path, name in spelled if name not in read | _FOREIGN} == set()
