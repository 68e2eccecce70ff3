"""The docs say what the code does: every setting, error, metric, route and promised test stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from comfyui import exceptions
from comfyui.exceptions import ComfyUIError
from comfyui.metrics import Metrics
from comfyui.web.front import errors
from config import Settings

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described(name: str) -> None:
    field = Settings.model_fields[name]
    row = next((line for line in page("configuration.md").splitlines() if line.startswith(f"| `{name.upper()}` |")), "")
    assert row, f"docs/configuration.md has no row for {name.upper()}"
    assert field.description
    assert field.description in row, "the row says the field's own description"


def error_classes() -> list[type[ComfyUIError]]:
    found = {
        item
        for module in (exceptions, errors)
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, ComfyUIError)
    }
    return sorted(found, key=lambda error: error.__name__)


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_code_is_described(error: type[ComfyUIError]) -> None:
    assert f"`{error.code}`" in page("api.md")


def test_every_metric_is_described() -> None:
    names = re.findall(r"^# HELP (\S+)", generate_latest(Metrics().registry).decode(), re.MULTILINE)
    assert names
    missing = [name for name in names if name not in page("metrics.md")]
    assert not missing


def test_every_promise_names_a_test_that_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", page("reliability.md")))
    defined = set(
        re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")))
    )
    assert named
    assert not named - defined


def test_links_between_the_docs_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.relative_to(ROOT)}: {link}"


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert used <= targets
