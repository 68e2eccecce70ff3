"""Each setting is declared once, and read in the same way by the gateway and the workers."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pydantic import Field
from pydantic.fields import FieldInfo

from comfyui.exceptions import SettingsError
from comfyui.settings import REMOVED, FieldGroup, LogFields, RecoveryFields, load, variables
from comfyui.workers.postgres.worker import main as postgres_main
from comfyui.workers.runpod.worker import main as runpod_main
from tests.support.settings import PROCESSES, all_variables

ROOT = Path(__file__).parents[2]

# docs/configuration.md has both meanings.
TWO_MEANINGS = {"POLL_INTERVAL", "COMFYUI_OUTPUT_DIR"}


def declarations(processes: Iterable[type[FieldGroup]]) -> dict[str, list[str]]:
    """The ``Class.field`` names that declare each variable, without those that only change a base's default."""
    found: dict[str, list[str]] = defaultdict(list)
    classes = {kind for process in processes for kind in process.__mro__ if issubclass(kind, FieldGroup)}
    for kind in sorted(classes, key=lambda kind: kind.__qualname__):
        inherited = [base.model_fields for base in kind.__mro__[1:] if issubclass(base, FieldGroup)]
        for name in inspect.get_annotations(kind).keys() & kind.model_fields.keys():
            field = kind.model_fields[name]
            if not any(name in fields and _meaning(fields[name]) == _meaning(field) for fields in inherited):
                found[(field.alias or name).upper()].append(f"{kind.__qualname__}.{name}")
    return found


def _meaning(field: FieldInfo) -> tuple[object, ...]:
    return field.annotation, field.metadata, field.alias, field.description


def test_each_variable_is_declared_in_one_class_only() -> None:
    found = declarations(PROCESSES.values())
    assert found.keys() == all_variables()
    assert {variable: names for variable, names in found.items() if len(names) > 1}.keys() == TWO_MEANINGS


def test_a_name_with_two_meanings_is_two_fields() -> None:
    found = declarations(PROCESSES.values())
    for variable in TWO_MEANINGS:
        fields = {name.partition(".")[2] for name in found[variable]}
        assert len(fields) == len(found[variable]) == 2


def test_a_second_declaration_of_a_variable_is_found() -> None:
    class Again(FieldGroup):
        log_output: str = Field(default="console", description="Of another class.")

    class Narrower(RecoveryFields):
        quarantine_after: int = Field(default=2, ge=1, description="A base's, with another limit.")

    found = declarations([LogFields, Again, Narrower])
    assert len(found["LOG_OUTPUT"]) == 2
    assert len(found["QUARANTINE_AFTER"]) == 2
    assert len(found["LOG_LEVEL"]) == 1


def test_every_class_of_settings_belongs_to_a_process_of_these_tests() -> None:
    known = {kind.__qualname__ for process in PROCESSES.values() for kind in process.__mro__}
    product = [ROOT / "server.py", ROOT / "config.py", *(ROOT / "comfyui").rglob("*.py")]
    classes = {
        node.name: {ast.unparse(base) for base in node.bases}
        for path in product
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    settings = {"BaseSettings"}
    while more := {name for name, bases in classes.items() if bases & settings} - settings:
        settings |= more
    assert len(settings) > len(PROCESSES)
    assert settings <= known


@pytest.mark.parametrize("process", PROCESSES)
def test_a_misspelt_name_stops_each_process(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_SECOND", "60")
    with pytest.raises(SettingsError, match=r"QUARANTINE_SECOND: there is no such .* QUARANTINE_SECONDS"):
        load(PROCESSES[process])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_removed_setting_stops_each_process_with_what_holds_instead(
    process: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    if where == "environment":
        monkeypatch.setenv("MAX_NODE_INPUTS", "50")
    else:
        file.write_text("MAX_NODE_INPUTS=50\n")
    with pytest.raises(SettingsError) as caught:
        load(PROCESSES[process], env_file=file)
    assert str(caught.value) == (
        "MAX_NODE_INPUTS: this setting was removed: the limit is 1,000 inputs of a node. Remove the variable."
    )


def test_no_process_has_a_removed_setting() -> None:
    assert not REMOVED.keys() & all_variables()


@pytest.mark.parametrize("process", PROCESSES)
def test_names_of_the_image_and_of_other_processes_are_not_refused_as_misspelt(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+)", (ROOT / "deploy" / "entrypoint.sh").read_text()))
    assert image
    for name in (image | all_variables()) - variables(PROCESSES[process]).keys():
        monkeypatch.setenv(name, os.environ.get(name, ""))
    load(PROCESSES[process])


@pytest.mark.parametrize(
    ("process", "variable"),
    [
        *((process, "MAX_INPUT_MB") for process in PROCESSES),
        ("gateway", "POLL_INTERVAL"),
        ("Postgres", "POLL_INTERVAL"),
    ],
)
def test_a_bad_value_is_named_by_its_variable_and_explained(
    process: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0")
    meaning = variables(PROCESSES[process])[variable].description
    with pytest.raises(SettingsError) as caught:
        load(PROCESSES[process])
    assert str(caught.value) == f"{variable}: Input should be greater than 0 ({meaning})"


@pytest.mark.parametrize(
    ("process", "variable"),
    [
        ("gateway", "WEBHOOK_URL_ALLOW"),
        *((process, "INPUT_URL_ALLOW") for process in PROCESSES if "INPUT_URL_ALLOW" in variables(PROCESSES[process])),
    ],
)
@pytest.mark.parametrize("entry", ["*.*", "http://x", "10.0.0.1/33", "host:0", "a b"])
def test_an_entry_that_allows_no_address_is_refused_at_the_start(
    process: str, variable: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"example.com,{entry}")
    with pytest.raises(SettingsError, match=f"^{variable}: {re.escape(repr(entry))} is not a host"):
        load(PROCESSES[process])


@pytest.mark.parametrize("process", ["gateway", "RunPod", "Postgres"])
@pytest.mark.parametrize(
    ("variable", "value"), [("S3_SECRET_ACCESS_KEY", "s3cret"), ("S3_ENDPOINT_URL", "https://u:s3cret@store")]
)
def test_bad_settings_of_a_store_are_refused_without_showing_secrets(
    process: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        load(PROCESSES[process])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("process", ["RunPod", "Postgres"])
def test_a_worker_has_one_comfyui(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_SERVER_ADDRESS", "one:8188,two:8188")
    with pytest.raises(
        SettingsError, match="COMFYUI_SERVER_ADDRESS: must be one address, because a worker has one ComfyUI"
    ):
        load(PROCESSES[process])


def test_the_environment_takes_precedence_over_an_optional_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    assert load(LogFields, env_file=file).log_output == "console"
    file.write_text("LOG_LEVEL=debug\nLOG_OUTPUT=json\nUNKNOWN=1\n")
    monkeypatch.setenv("LOG_OUTPUT", "console")
    settings = load(LogFields, env_file=file)
    assert (settings.log_level, settings.log_output) == ("DEBUG", "console")
    assert load(LogFields).log_level == "INFO"


def test_the_gateway_reads_the_file_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=loud\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "server"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "LOG_LEVEL: " in ended.stderr


@pytest.mark.parametrize("main", [runpod_main, lambda: postgres_main([])], ids=["RunPod", "Postgres"])
def test_a_worker_reads_the_file_in_its_folder(
    main: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LOG_LEVEL=loud\n")
    assert main() == 2
    assert "LOG_LEVEL: " in capsys.readouterr().err
