"""ComfyUI's refusals are shown to a user without the names of other users' files."""

from __future__ import annotations

from typing import Any

from comfyui.executors.own_files import answer_without_files

_KNOWN: dict[str, Any] = {
    "LoadImage": {"input": {"required": {"image": [["bob.png", "None"], {"image_upload": True}]}}},
    "LoadLatent": {"input": {"required": {"latent": [["bob.latent"]]}}},
}


def _error(value: str, choices: list[str]) -> dict[str, Any]:
    info = {"input_name": "file", "input_config": [choices, {}], "received_value": value}
    details = f"file: '{value}' not in {choices}"
    return {"type": "value_not_in_list", "message": "Value not in list", "details": details, "extra_info": info}


def _answer(*errors: dict[str, Any]) -> dict[str, Any]:
    details = "\n".join(f"{error['message']}: {error['details']}" for error in errors)
    whole = {"type": "prompt_outputs_failed_validation", "message": "m", "details": details, "extra_info": {}}
    nodes = {"1": {"errors": list(errors), "dependent_outputs": ["1"], "class_type": "Custom"}}
    return {"error": whole, "node_errors": nodes}


def test_a_list_of_uploaded_files_is_replaced_by_its_length() -> None:
    told = answer_without_files(_answer(_error("a.png", ["bob.png", "x"]), _error("y", ["bob.latent"])), [_KNOWN])
    assert "bob" not in str(told)
    first, second = told["node_errors"]["1"]["errors"]
    assert first["details"] == "file: 'a.png' not in (list of length 2)"
    assert second["details"] == "file: 'y' not in (list of length 1)"
    assert first["extra_info"]["input_config"] is None
    assert told["error"]["details"].count("list of length") == 2


def test_other_lists_and_unknown_answers_are_not_changed() -> None:
    answer = _answer(_error("left", ["disabled", "center", "None"]))
    assert answer_without_files(answer, [_KNOWN]) == answer
    for odd in ({"error": "a text", "node_errors": []}, {"error": None}, {}):
        assert answer_without_files(odd, [_KNOWN]) == odd
