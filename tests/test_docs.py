"""The docs say what the code does: they describe every setting, error, route, metric and log line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import iter_route_contexts
from prometheus_client import generate_latest

from comfyui import exceptions
from comfyui.exceptions import ComfyUIError
from comfyui.jobs.job import Reason
from comfyui.metrics import Metrics
from comfyui.sdk.errors import error_from
from comfyui.settings import variables
from comfyui.web.front.rights import TABLE, WEBSOCKET, Right
from config import Settings
from server import create_app
from tests.support.log_events import LogLine, log_lines
from tests.support.settings import PROCESSES

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# The sections of docs/configuration.md whose settings one process reads; rows of other sections name their processes.
SECTIONS = {
    "The gateway": "gateway",
    "For experts: the gateway": "gateway",
    "The RunPod worker": "RunPod",
    "The LittleHorse worker": "LittleHorse",
    "The Postgres worker": "Postgres",
}
EVERYONE = {"all": list(PROCESSES), "all workers": [name for name in PROCESSES if name != "gateway"]}


def documented_settings() -> dict[tuple[str, str], tuple[str, str]]:
    """The default and the meaning that docs/configuration.md gives each process and variable."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    heading = ""
    for line in page("configuration.md").splitlines():
        heading = line.removeprefix("## ") if line.startswith("## ") else heading
        if not line.startswith("| `"):
            continue
        variable, *readers, default, meaning = line.strip("| ").split(" | ")
        named = EVERYONE.get(readers[0]) or readers[0].split(", ") if readers else [SECTIONS[heading]]
        for process in named:
            assert (process, variable) not in found, f"two rows of {variable} for {process}"
            found[process, variable.strip("`")] = (_default_of(process, default), meaning)
    return found


def _default_of(process: str, cell: str) -> str:
    """Reads a cell like ``512``; Postgres ``2048``: the first value is the default of processes that are not named."""
    first, *others = cell.split("; ")
    return next((other.removeprefix(f"{process} ") for other in others if other.startswith(f"{process} ")), first)


def _shown(default: object) -> str:
    if default is None or default in ("", (), {}):
        return "empty"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{','.join(default)}`" if isinstance(default, tuple) else f"`{default}`"


@pytest.mark.parametrize("process", PROCESSES)
def test_every_setting_is_described_with_its_default(process: str) -> None:
    documented = {variable: row for (of, variable), row in documented_settings().items() if of == process}
    fields = variables(PROCESSES[process])
    assert documented.keys() == fields.keys()
    for variable, field in fields.items():
        default, meaning = documented[variable]
        assert field.description
        assert meaning.startswith(field.description), f"{variable}: the row says the field's own description"
        assert default == _shown(field.default), variable


def error_classes() -> list[type[ComfyUIError]]:
    return [item for item in vars(exceptions).values() if isinstance(item, type) and issubclass(item, ComfyUIError)]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_is_described_with_its_code_and_status(error: type[ComfyUIError]) -> None:
    text = page("api.md")
    statuses = re.findall(rf"^\| `{error.code}` \| ([^|]+) \||`{error.code}` \((\d+)\)", text, re.MULTILINE)
    assert any(str(error.status) in status for row in statuses for status in row)


@pytest.mark.parametrize("name", ["api.md", "drop-in.md"])
def test_every_path_of_ours_is_described(name: str) -> None:
    paths = {route.path or "" for route in iter_route_contexts(create_app(Settings()).router.routes)}
    assert "/prompt_sync" in paths
    described = page(name)
    # The console's pages lead to each other.
    paths = {"/console" if path.startswith("/console/") else path for path in paths}
    assert [path for path in sorted(paths) if path.partition("{")[0].rstrip("/") not in described] == []


def rights_table() -> str:
    """The table of rights as docs/keys.md has it: paths with equal rights share a row."""
    shown = {Right.NO: "403", Right.OWN: "own", Right.ALL: "yes"}
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in TABLE:
        method = "websocket" if row.method == WEBSOCKET else row.method
        lines.setdefault((method, shown[row.user], shown[row.read]), []).append(f"`{row.path}`")
    table = ["| method | path | `user` | `read` |", "| --- | --- | --- | --- |"]
    table += [f"| {method} | {', '.join(paths)} | {user} | {read} |" for (method, user, read), paths in lines.items()]
    return "\n".join([*table, "| any | everything else | 403 | 403 |"])


def test_the_documented_rights_table_is_the_one_in_the_code() -> None:
    assert rights_table() in page("keys.md")


def test_the_sdk_knows_the_status_of_every_error() -> None:
    """An error at the end of an event stream carries no status, so the SDK must know it."""
    possible: dict[str, set[int]] = {}
    for error in error_classes():
        possible.setdefault(error.code, set()).add(error.status)
    known = {code: error_from({"error": "", "type": code, "detail": ""}).status for code in possible}
    assert {code: status for code, status in known.items() if status not in possible[code]} == {}


def _exposed() -> str:
    return generate_latest(Metrics().registry).decode()


def test_every_metric_is_described_by_its_help_text() -> None:
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", _exposed(), re.MULTILINE))
    ours = {name: text for name, text in helps.items() if name.startswith("comfyui_") and not name.endswith("_created")}
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| [^|]*\| (.+) \|$", page("metrics.md"), re.MULTILINE)
    documented = {name: meaning.replace("`", "") for name, meaning in rows}
    assert documented.keys() == ours.keys()
    assert {name: text for name, text in ours.items() if not documented[name].startswith(text)} == {}
    assert [name for name in helps if name.startswith("process_") and f"`{name}`" not in page("metrics.md")] == []


def test_every_reason_of_a_cancel_is_described() -> None:
    help_text = re.search(r"# HELP comfyui_gateway_cancellations_total .*: (.+)\.", _exposed())
    assert help_text is not None
    assert set(help_text[1].split(", ")) == set(get_args(Reason))


def documented_log_lines() -> dict[str, LogLine]:
    """The rows of docs/data.md by event: levels, loggers and fields. Each row must have a meaning."""
    found: dict[str, LogLine] = {}
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*?) ?\| ([^|]+) \|", page("data.md"), re.MULTILINE)
    for event, levels, loggers, fields, meaning in rows:
        assert event not in found, f"two rows of {event}"
        assert meaning.strip(), event
        found[event] = LogLine(
            set(levels.split(", ")), set(re.findall(r"`([^`]+)`", loggers)), set(re.findall(r"`([^`]+)`", fields))
        )
    return found


def test_every_log_line_is_described_with_its_level_logger_and_fields() -> None:
    lines, documented = log_lines(ROOT), documented_log_lines()
    assert len(lines) > 100
    assert lines.keys() - documented.keys() == set()
    assert documented.keys() - lines.keys() == set()
    for event, line in documented.items():
        assert line == lines[event], f"{event}: docs/data.md first, the source second"


def test_the_docs_index_links_every_page() -> None:
    folder = ROOT / "docs"
    linked = re.findall(r"\]\(([\w-]+\.md)\)", page("README.md"))
    pages = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert sorted(pages) == sorted(set(linked))


def test_every_link_between_the_docs_has_a_target() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.relative_to(ROOT)}: {link}"


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page_of_root in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`(?:\w+=\S+ )?make ([a-z-]+)", (ROOT / page_of_root).read_text())) <= targets
