"""The parameters and outputs of a workflow, found by titles and by its sidecar."""

from __future__ import annotations

import pytest

from comfyui import jsonio
from comfyui.limits import DEFAULT_LIMITS
from comfyui.named.loading import load
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedOutput, NamedWorkflow, Target
from comfyui.named.values import fitted
from tests.support.named import OBJECT_INFO, loaded, node, unusable, workflow


def targets(named: object) -> dict[str, tuple[Target, ...]]:
    return {one.name: one.targets for one in named.parameters}  # type: ignore[attr-defined]


def test_titles_name_parameters_and_outputs() -> None:
    named = loaded(workflow(loader="$model", text="input:prompt", sampler="$seed", save="output:picture"))
    assert targets(named) == {
        "model": (Target("1", "name"),),
        "prompt": (Target("2", "text"),),
        "seed": (Target("3", "seed"),),
    }
    assert named.outputs == (NamedOutput("picture", "5"),)
    assert named.warnings == ()


def test_a_title_may_name_its_input() -> None:
    assert targets(loaded(workflow(sampler="$strength.cfg"))) == {"strength": (Target("3", "cfg"),)}


def test_an_input_that_only_the_node_definition_has_may_be_a_parameter() -> None:
    assert targets(loaded(workflow(sampler="$level"))) == {"level": (Target("3", "level"),)}


@pytest.mark.parametrize(
    ("titles", "reason"),
    [
        ({"sampler": "$strength"}, "Sampler has several inputs; write one of $strength.seed, $strength.steps"),
        ({"sampler": "$strength.gone"}, "Sampler has no input 'gone'; its inputs are: seed, steps, cfg, tiled, method"),
        ({"sampler": "$to.positive"}, "the input positive of Sampler is linked, and a value cannot replace a link"),
        ({"text": "$to.model"}, "model of Text is linked"),
        ({"text": "$5 lora"}, "a name must be 1 to 64 letters"),
        ({"save": "output:"}, "its title 'output:' makes no output: a name must be"),
    ],
)
def test_a_title_that_names_no_input_or_output_gives_a_warning(titles: dict[str, str], reason: str) -> None:
    named = loaded(workflow(**titles))
    assert named.parameters == ()
    assert named.outputs == ()
    assert len(named.warnings) == 1
    assert reason in named.warnings[0]


def test_a_linked_widget_is_no_parameter() -> None:
    prompt = workflow(text="$prompt")
    prompt["6"] = node("Text", "", text="x", model=["1", 0])
    prompt["2"]["inputs"]["text"] = ["6", 0]
    named = loaded(prompt)
    assert named.parameters == ()
    assert "no input for a value, or all of them are linked" in named.warnings[0]


def test_the_sidecar_names_nodes_by_id_and_by_title() -> None:
    sidecar = """
        title = "Portrait"
        [parameters.prompt]
        node = "The text"
        input = "text"
        title = "What is shown"
        [parameters.steps]
        node = 3
        input = "steps"
        maximum = 30
        [outputs.picture]
        node = 5
    """
    named = loaded(workflow(text="The text"), sidecar)
    assert targets(named) == {"prompt": (Target("2", "text"),), "steps": (Target("3", "steps"),)}
    assert (named.title, named.by_name["prompt"].title) == ("Portrait", "What is shown")
    assert named.by_name["steps"].maximum == 30
    assert named.outputs == (NamedOutput("picture", "5"),)


def test_a_sidecar_table_without_a_node_adds_to_the_parameter_of_a_title() -> None:
    named = loaded(workflow(text="$prompt"), '[parameters.prompt]\nrequired = true\nrole = "prompt"')
    assert targets(named) == {"prompt": (Target("2", "text"),)}
    assert named.by_name["prompt"].required


def test_one_value_may_go_into_several_inputs() -> None:
    prompt = workflow()
    prompt["6"] = node("Sampler", "", seed=1, steps=5, cfg=1.0, tiled=True, method="heun", positive=["2", 0])
    named = loaded(prompt, '[parameters.seed]\nnode = 3\nalso = [{node = 6, input = "seed"}]')
    assert targets(named) == {"seed": (Target("3", "seed"), Target("6", "seed"))}


def test_the_sidecar_takes_precedence_over_titles() -> None:
    named = loaded(workflow(sampler="$seed"), '[parameters.random]\nnode = 3\ninput = "seed"')
    assert targets(named) == {"random": (Target("3", "seed"),)}
    assert named.warnings == ("seed is not a parameter, because another one sets its inputs",)


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ('[parameters.p]\nnode = "99"\ninput = "x"', "[parameters.p]: no node has the id or the title '99'"),
        ('[parameters.p]\nnode = 3\ninput = "gone"', "[parameters.p]: node 3: Sampler has no input 'gone'"),
        ('[parameters.p]\nnode = 3\ninput = "positive"', "positive of Sampler is linked, and a value cannot replace"),
        (
            "[parameters.p]\nnode = 3",
            "[parameters.p] must name an input of node 3 (Sampler); its inputs are: seed, steps",
        ),
        (
            '[parameters.p]\ntitle = "x"',
            "[parameters.p] must name a node, because the workflow itself has no parameter",
        ),
        (
            '[parameters.p]\nnode = "same"\ninput = "x"',
            "nodes 1, 2 all have the title 'same'; give the id of one instead",
        ),
        ("[outputs.o]\nnode = 99", "[outputs.o]: no node has"),
        (
            '[parameters.p]\nnode = 3\ninput = "steps"\nminimum = 9\nmaximum = 8',
            "the minimum 9 of the parameter p must not be above its maximum 8",
        ),
        (
            '[parameters.p]\nnode = 2\ninput = "text"\nminimum = 9',
            "the parameter p must have no minimum and maximum, because it is not a number",
        ),
        (
            '[parameters.p]\nnode = 3\ninput = "steps"\ndefault = "many"',
            "the default of the parameter p must be a whole number from 1 to 100, not 'many'",
        ),
        (
            '[parameters.p]\nnode = 3\ninput = "steps"\ndefault = 1000',
            "the default of the parameter p must be a whole number from 1 to 100, not 1000",
        ),
        ('[parameters.p]\nnode = 3\ninput = "steps"\nrole = "size"', "[parameters.p] role: Input should be 'prompt'"),
        ("[parameters.p]\nsize = 3", "[parameters.p] size: there is no such field; the fields are node, input, also"),
        ("size = 3", "size: there is no such field; the fields are title, description, parameters, outputs"),
        ("[outputs.o]\nid = 3", "[outputs.o] id: there is no such field; the fields are node"),
        ("[parameters.p]\nalso = [{nod = 3}]", "nod: there is no such field; the fields are node, input"),
        ("[parameters.p", "portrait.toml is not TOML"),
        (
            '[parameters.a]\nnode=3\ninput="steps"\n[parameters.b]\nnode=3\ninput="steps"',
            "the parameters a and b must not both be the input steps of node 3",
        ),
        (
            '[parameters.a]\nnode=3\ninput="steps"\nrole="n"\n[parameters.b]\nnode=3\ninput="seed"\nrole="n"',
            "the parameters a and b must not both have the role n",
        ),
        (
            "[parameters.p]\nnode = 4\ndefault = 5",
            "the default of the parameter p must be a file (image): a URL, a data URI, or base64, not 5",
        ),
        ("[outputs.a]\nnode = 5\n[outputs.b]\nnode = 5", "the outputs a and b must not both be node 5"),
        ("title = " + "[" * 100_000, "portrait.toml is nested too deeply"),
        ("[parameters.p]\nnode = 4\ndefault = " + "9" * 5000, "portrait.toml has a number with too many digits"),
        ("a." * 400_000 + "a = 1", "portrait.toml has a dotted name with 100 or more parts"),
        ("x = {" + '"a\\"" . ' * 40_000 + "'a' = 1}", "portrait.toml has a dotted name with 100 or more parts"),
        ("[" + "'a'." * 40_000 + "a]", "portrait.toml has a dotted name with 100 or more parts"),
    ],
)
def test_an_unusable_sidecar_is_refused_with_the_reason(sidecar: str, reason: str) -> None:
    assert reason in unusable(workflow(loader="same", text="same"), sidecar)


def test_texts_of_a_sidecar_may_be_long_and_have_dots() -> None:
    texts = ["a" * 9000, "... " * 2000, "1.2.3.4.5 " * 900, "a. " * 90]
    for text in texts:
        assert loaded(workflow(text="$prompt"), f'description = "{text}"').description == text


def test_folders_of_the_input_folder_are_not_shown_as_choices() -> None:
    prompt = workflow()
    prompt["6"] = node("LoadImageDataSetFromFolder", "$folder", folder="mine")
    definition = {"input": {"required": {"folder": ["COMBO", {"options": ["another_s", "mine"]}]}}, "output": []}
    nodes = Nodes({**OBJECT_INFO, "LoadImageDataSetFromFolder": definition})
    named = load("l", jsonio.dumps(prompt), None, nodes, DEFAULT_LIMITS)
    assert isinstance(named, NamedWorkflow)
    assert "another_s" not in jsonio.dumps(named.schema).decode()
    assert fitted(named.by_name["folder"], "mine") == "mine"


def test_two_parameters_of_one_name_are_refused_with_both_nodes() -> None:
    reason = unusable(workflow(loader="$x", text="$x"))
    assert reason == "two parameters have the name x: that of node 1 and that of node 2"


def test_two_outputs_of_one_name_are_refused_with_both_nodes() -> None:
    assert (
        unusable(workflow(picture="output:x", save="output:x"))
        == "two outputs have the name x: that of node 4 and that of node 5"
    )


def test_an_output_node_that_makes_no_files_gives_a_warning() -> None:
    named = loaded(workflow(sampler="output:x"))
    assert named.warnings == ("node 3: Sampler, which is the output x, makes no files",)


def test_without_node_definitions_the_types_come_from_the_file() -> None:
    named = loaded(workflow(text="$prompt", sampler="$seed", picture="$image"), object_info=None)
    assert {one.name: one.kind for one in named.parameters} == {"prompt": "text", "seed": "integer", "image": "file"}


def test_the_error_of_a_sidecar_table_says_why_the_title_gave_no_parameter() -> None:
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "a"}, "_meta": {"title": "$p.txt"}}}

    reason = unusable(prompt, "[parameters.p]\nrequired = true")

    assert reason.startswith(
        "[parameters.p] must name a node, because the workflow itself has no parameter of this name; "
    )
    assert "node 1: its title '$p.txt' makes no parameter: " in reason
