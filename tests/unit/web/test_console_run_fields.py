"""The fields of a named workflow's form, and the values of a form that was sent."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.limits import DEFAULT_LIMITS
from comfyui.named.parameters import NamedWorkflow
from comfyui.web.console.run_code import NamedRun, as_curl, as_javascript, as_python
from comfyui.web.console.run_fields import Field, fields_of
from comfyui.web.console.run_values import values_of, values_of_pairs, written
from tests.support.named import OBJECT_INFO, loaded, workflow

_LARGEST = 2**64 - 1


def _workflow_with(sidecar: str, **changed: Any) -> NamedWorkflow:
    """The small workflow with the parameters of this sidecar and with changed definitions of Sampler's inputs."""
    info = {**OBJECT_INFO, "Sampler": {**OBJECT_INFO["Sampler"]}}
    required = {**OBJECT_INFO["Sampler"]["input"]["required"], **changed}
    info["Sampler"]["input"] = {**OBJECT_INFO["Sampler"]["input"], "required": required}
    return loaded(workflow(), sidecar, object_info=info)


def _field(sidecar: str, given: dict[str, Any] | None = None, **changed: Any) -> Field:
    (field,) = fields_of(_workflow_with(sidecar, **changed), given or {}, {}, {})
    return field


_STEPS = '[parameters.steps]\nnode = "3"\ninput = "steps"\n'
_SEED = '[parameters.seed]\nnode = "3"\ninput = "seed"\n'
_CFG = '[parameters.cfg]\nnode = "3"\ninput = "cfg"\n'
_METHOD = '[parameters.method]\nnode = "3"\ninput = "method"\n'


@pytest.mark.parametrize(
    ("options", "slider"),
    [
        ({"min": 1, "max": 100}, ("1", "100", "1")),
        ({"min": 16, "max": 16384, "step": 8}, ("16", "16384", "8")),
        ({"min": 1}, None),
        ({"max": 100}, None),
        ({"min": 0, "max": 2**24}, None),  # a slider with too many steps to choose from
        ({"min": 2**60, "max": 2**60 + 10}, None),  # a browser would round the values
        ({"min": 5, "max": 5}, None),
    ],
)
def test_a_whole_number_has_a_slider_if_it_is_usable_and_exact(
    options: dict[str, Any], slider: tuple[str, str, str] | None
) -> None:
    found = _field(_STEPS, steps=["INT", {"default": options.get("min", 20), **options}]).slider
    assert (found and (found.low, found.high, found.step)) == slider


def test_a_fraction_has_a_slider_with_the_step_of_its_node() -> None:
    found = _field(_CFG).slider
    assert found is not None
    assert (found.low, found.high, found.step) == ("0", "100", "0.1")
    found = _field(_CFG, cfg=["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0}]).slider
    assert found is not None
    assert found.step == "0.02"


def test_a_seed_is_shown_as_an_exact_text() -> None:
    field = _field(_SEED, {"seed": _LARGEST})
    assert (field.control, field.value, field.slider) == ("seed", "18446744073709551615", None)
    assert field.seeds == (0, 2**53 - 1)
    assert field.limits == 'A whole number from 0 to 18446744073709551615, or "random"'
    assert _field(_SEED).value == "random"
    field = _field(_SEED, seed=["INT", {"default": 5, "min": 3, "max": 9, "control_after_generate": True}])
    assert field.seeds == (3, 9)


def test_many_choices_get_a_search_field_and_few_a_list() -> None:
    few = _field(_METHOD)
    assert (few.control, [one.value for one in few.choices]) == ("choice", ["euler", "heun"])
    many = _field(_METHOD, method=["COMBO", {"options": [f"m{number}" for number in range(500)] + ["euler"]}])
    assert (many.control, len(many.choices), many.value) == ("search", 501, "euler")


def test_a_value_that_is_no_longer_a_choice_is_shown_and_selected() -> None:
    field = _field(_METHOD, {"method": "gone"})
    assert [(one.value, one.chosen) for one in field.choices] == [("euler", False), ("heun", False), ("gone", True)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.0, "8"), (7.5, "7.5"), (0.1, "0.1"), (_LARGEST, "18446744073709551615"), (True, "true"), (None, ""), ("", "")],
)
def test_values_are_shown_as_people_type_them(value: Any, text: str) -> None:
    assert written(value) == text


def test_an_unticked_box_means_false_and_an_empty_number_means_no_value() -> None:
    tiled = '[parameters.tiled]\nnode = "3"\ninput = "tiled"\n'
    named = loaded(workflow(text="$prompt"), f"{_STEPS}{_CFG}{tiled}{_SEED}")
    texts = {"prompt": "", "steps": "", "cfg": "2.5", "seed": "random", "nonsense": ""}
    values = values_of(texts, {"$unset": ["tiled"]}, named, DEFAULT_LIMITS)
    assert values == {"prompt": "", "cfg": "2.5", "seed": "random", "nonsense": "", "tiled": False}
    pairs = [("$unset", "tiled"), ("tiled", "true"), ("prompt", "a\r\nb"), ("$from", "x"), ("$base", "y")]
    assert values_of_pairs(pairs, named, DEFAULT_LIMITS) == {"tiled": "true", "prompt": "a\nb"}


def test_code_samples_escape_values_that_their_language_would_change() -> None:
    run = NamedRun("http://host/below", "a.b", {"__proto__": "x", "a-b": [_LARGEST, True, None, {"é": -1}]}, {}, False)
    assert '["__proto__"]: "x"' in as_javascript(run)
    assert '"a-b": [\'18446744073709551615\', true, null, { "é": -1 }]' in as_javascript(run)
    assert '"a-b": [18446744073709551615, True, None, {"é": -1}]' in as_python(run)
    assert 'a-b": [18446744073709551615, true, null, {"é": -1}]}' in as_curl(run)
    hidden = NamedRun("http://host", "a", {"text": "a\u202eb\u200bc\0"}, {}, False)
    for code in (as_curl(hidden), as_python(hidden), as_javascript(hidden)):
        assert "a\\u202eb\\u200bc\\u0000" in code
