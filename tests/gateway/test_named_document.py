"""`/openapi.json` has a path for each named workflow, and follows the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs

from comfyui.engine import Engine
from comfyui.web.front.named_document import with_workflows
from tests.support.described import Document
from tests.support.named import OBJECT_INFO, loaded, workflow, write
from tests.support.named_folder import FLAT, FLAT_PARAMETERS, run
from tests.support.running import RunningGateway, running_gateway, until


async def document_of(gateway: RunningGateway) -> Document:
    async with gateway.http.get("/openapi.json") as response:
        assert response.status == 200
        found: Document = await response.json()
        return found


def resolved(document: Document, reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def validator(document: Document, name: str) -> jsonschema_rs.Validator:
    schema = document["components"]["schemas"][name]
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


async def test_the_path_of_a_workflow_describes_the_bodies_and_answers_of_its_run(named: RunningGateway) -> None:
    document = await document_of(named)
    run_any = document["paths"]["/workflows/{name}"]["post"]
    flat = document["paths"]["/workflows/flat"]["post"]
    assert (flat["operationId"], flat["summary"]) == ("run_Flat", "Flat")
    assert set(flat["responses"]) == set(run_any["responses"]) >= {"200", "202", "403", "404", "409", "422", "503"}
    for status, response in flat["responses"].items():
        assert resolved(document, response["$ref"]) == run_any["responses"][status]
    names = {resolved(document, one["$ref"])["name"] for one in flat["parameters"]}
    assert (
        names == {one["name"] for one in run_any["parameters"]} - {"name"} >= {"timeout", "Prefer", "Idempotency-Key"}
    )
    takes = validator(document, "RunFlat")
    allowed: list[Any] = [{}, {"width": 9, "seed": "random"}, {"$options": {"labels": {"a": "b"}, "priority": 0}}]
    for body in allowed:
        assert takes.is_valid(body)
        assert (await run(named.http, "flat", body))[0] == 200
    refused: list[Any] = [{"width": 65}, {"colour": 1}, {"$options": {"number": 1}}]
    for body in refused:
        assert (await run(named.http, "flat", body))[0] == 422
        assert not takes.is_valid(body)
    assert list(flat["requestBody"]["content"]) == ["application/json"]
    example = flat["requestBody"]["content"]["application/json"]["example"]
    assert takes.is_valid(example)
    assert "seed" not in example
    assert (await run(named.http, "flat", example))[0] == 200
    inverted = document["paths"]["/workflows/inverted"]["post"]
    assert list(inverted["requestBody"]["content"]) == ["application/json", "multipart/form-data"]
    assert "/workflows/broken" not in document["paths"]


async def test_the_document_is_cached_until_a_workflow_file_changes(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, "flat", FLAT, FLAT_PARAMETERS)
    async with running_gateway(engine.url, workflows_dir=tmp_path) as gateway:
        running = gateway.app.running
        await document_of(gateway)
        first = await running.documents.of(gateway.app.openapi, running.named, None)
        assert await running.documents.of(gateway.app.openapi, running.named, None) is first
        write(tmp_path, "flat", FLAT, FLAT_PARAMETERS.replace("maximum = 64", "maximum = 32"))
        write(tmp_path, "flat-too", FLAT, FLAT_PARAMETERS)

        async def widest() -> Any:
            schemas = (await document_of(gateway))["components"]["schemas"]
            return "RunFlatToo" in schemas, schemas["RunFlat"]["properties"]["width"]["maximum"]

        assert await until(widest, lambda found: found == (True, 32)) == (True, 32)


async def test_without_workflows_the_document_has_no_added_paths(gateway: RunningGateway) -> None:
    assert await document_of(gateway) == gateway.app.openapi()


def test_similar_workflow_names_get_distinct_schemas_and_operation_ids(document: Document) -> None:
    flat = loaded(FLAT, FLAT_PARAMETERS, object_info=None)
    named = [replace(flat, name=name) for name in ("a-b", "a.b", "A_B", "4x", "options", "Options")]
    made = with_workflows(document, named)
    ids = [made["paths"][f"/workflows/{one.name}"]["post"]["operationId"] for one in named]
    schemas = [
        made["paths"][f"/workflows/{one.name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for one in named
    ]
    assert len({one.lower() for one in ids}) == len({one.lower() for one in schemas}) == len(named)
    assert made["components"]["schemas"]["RunOptions"] == document["components"]["schemas"]["RunOptions"]


def test_similar_choices_get_distinct_names_for_code_generators(document: Document) -> None:
    choices = ["sub/m.safetensors", "sub m.safetensors", "SUB_M.safetensors", "4x", "", "🦊"]
    info = {**OBJECT_INFO, "Loader": {"input": {"required": {"name": [choices]}}, "output": ["MODEL"]}}
    made = with_workflows(document, [loaded(workflow(loader="$model"), object_info=info)])
    model = made["components"]["schemas"]["RunPortrait"]["properties"]["model"]
    assert model["enum"] == choices
    names = model["x-enum-varnames"]
    assert len({name.upper() for name in names}) == len(choices)
    assert all(name[0].isalpha() for name in names)
    fractions = {**OBJECT_INFO, "Loader": {"input": {"required": {"name": [[0.5, 1.5]]}}, "output": ["MODEL"]}}
    made = with_workflows(document, [loaded(workflow(loader="$model"), object_info=fractions)])
    assert "enum" not in made["components"]["schemas"]["RunPortrait"]["properties"]["model"]


async def test_the_docs_page_says_what_it_needs_if_swagger_ui_cannot_be_loaded(gateway: RunningGateway) -> None:
    async with gateway.http.get("/docs") as response:
        page = await response.text()
    place = page.index('<div id="swagger-ui"><p>This page loads Swagger UI from cdn.jsdelivr.net.')
    assert '<a href="openapi.json">' in page[place:]
    assert "https://cdn.jsdelivr.net/" in page
