"""For every value, JSON Schema and binding agree, and no value becomes a link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfyui.exceptions import ParametersError
from comfyui.named.parameters import NamedWorkflow, Parameter, Unusable
from comfyui.workflows.api_format import is_link
from tests.support.named import MODELS, OBJECT_INFO, bound, loaded, loaded_or_not, node, workflow

SIDECAR = """
    [parameters.model]
    node = 1
    [parameters.prompt]
    node = 2
    [parameters.seed]
    node = 3
    [parameters.steps]
    node = 3
    [parameters.cfg]
    node = 3
    [parameters.tiled]
    node = 3
    [parameters.method]
    node = 3
    [parameters.level]
    node = 3
    [parameters.marks]
    node = 3
    [parameters.curve]
    node = 3
    [parameters.several]
    node = 6
    [parameters.mixed]
    node = 7
    [parameters.image]
    node = 4
    required = false
"""
NODES = OBJECT_INFO | {
    "Several": {"input": {"required": {"several": ["COMBO", {"options": ["a", "b", 3], "multi_select": True}]}}},
    "Mixed": {"input": {"required": {"mixed": [[1, 2.5, True, "1", "x/y"]]}}},
}


def portrait() -> NamedWorkflow:
    prompt = workflow() | {"6": node("Several", several=["a"]), "7": node("Mixed", mixed=1)}
    prompt["6"]["inputs"]["several"] = {"__value__": ["a"]}
    prompt["3"]["inputs"] |= {"curve": {"__type__": "CURVE", "__value__": [[0, 0], [1, 1]]}, "marks": ""}
    return loaded(prompt, SIDECAR, object_info=NODES)


PORTRAIT = portrait()
VALIDATORS = {
    name: jsonschema_rs.Draft202012Validator(
        {"type": "object", "properties": {name: schema}, "additionalProperties": False}
    )
    for name, schema in PORTRAIT.schema["properties"].items()
}
SCALARS = (
    st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.integers(-2, 102)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([*MODELS, "sub/b.safetensors", "euler", "random", "true", "True", "1", "2.5", "a", "x/y", "x\\y"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__value__", "__type__", "a"]) | st.text(max_size=5), inner, max_size=3)
        | st.tuples(st.text(max_size=3), st.integers(-1, 3) | st.booleans() | st.floats(0, 2)).map(list)
    ),
    max_leaves=6,
)


def is_written_as_text(parameter: Parameter, value: Any) -> bool:
    """Whether binding accepts the value although the schema does not: see `comfyui.named.values`."""
    if parameter.many:
        return isinstance(value, list) and any(isinstance(one, str) for one in value)
    return isinstance(value, str) and parameter.kind in ("integer", "number", "boolean", "choice")


def is_beyond_doubles(value: Any) -> bool:
    """The validator compares numbers beyond 2^53 as floats."""
    return isinstance(value, int | float) and abs(value) > 2**53


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(VALIDATORS)), value=VALUES)
@example(name="marks", value={"__value__": ["1", 0]})
@example(name="level", value=1.0)
@example(name="level", value=True)
@example(name="mixed", value=1)
@example(name="steps", value=20.0)
@example(name="several", value=["a", 3])
@example(name="several", value=["a", "b", 3])
def test_binding_accepts_the_values_of_the_schema_and_refuses_others_by_name(name: str, value: Any) -> None:
    valid = VALIDATORS[name].is_valid({name: value})
    refused = refused_in(**{name: value})
    if is_beyond_doubles(value):
        return
    if refused:
        assert refused.keys() == {name}
        assert refused[name]["message"]
        assert not valid
    else:
        assert valid or is_written_as_text(PORTRAIT.by_name[name], value)


def refused_in(**values: Any) -> Mapping[str, Any]:
    """The problems of a call; empty if the call can be bound."""
    try:
        bound(PORTRAIT, **values)
    except ParametersError as error:
        return error.parameters
    return {}


def as_comfyui_reads(value: Any) -> Any:
    """ComfyUI unwraps a boxed value before it runs the node, and looks for links only after that."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.sampled_from(sorted(VALIDATORS)), VALUES, max_size=4))
@example(values={"marks": {"__value__": ["1", 0]}})
@example(values={"marks": ["1", 0]})
@example(values={"curve": ["1", True]})
@example(values={"prompt": '["1", 0]'})
def test_no_value_becomes_a_link_or_takes_the_place_of_one(values: dict[str, Any]) -> None:
    if refused_in(**values):
        return
    prompt = bound(PORTRAIT, **values).prompt
    assert prompt.keys() == PORTRAIT.prompt.keys()
    for node_id, before in PORTRAIT.prompt.items():
        after = prompt[node_id]
        assert after | {"inputs": None} == before | {"inputs": None}
        for name, value in after["inputs"].items():
            own = before["inputs"].get(name)
            if is_link(own):
                assert value == own
            else:
                assert not isinstance(value, list)
                assert not is_link(as_comfyui_reads(value))


TITLES = st.sampled_from(
    ["", "$x", "$y", "input:z", "$x.text", "$x.model", "$x.positive", "$seed", "$marks", "output:o", "$curve.curve"]
)


@settings(max_examples=200, deadline=None)
@given(titles=st.lists(TITLES, min_size=5, max_size=5), linked=st.sets(st.sampled_from(["text", "steps", "seed"])))
def test_no_title_makes_a_parameter_of_a_linked_input(titles: list[str], linked: set[str]) -> None:
    prompt = workflow(**dict(zip(("loader", "text", "sampler", "picture", "save"), titles, strict=True)))
    for name in linked:
        prompt["2" if name == "text" else "3"]["inputs"][name] = ["1", 0]
    named = loaded_or_not(prompt, None, object_info=OBJECT_INFO)
    if isinstance(named, Unusable):
        assert named.problem.startswith(("two parameters have the name", "two outputs have the name"))
        return
    for parameter in named.parameters:
        for target in parameter.targets:
            assert not is_link(prompt[target.node_id]["inputs"].get(target.input))
