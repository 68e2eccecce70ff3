"""Definitions of the nodes that are resolved away, for workflows in the editor's own format.

That format can be read only with the definitions of its nodes, and no server needs these nodes. If a server has the
pack, its own definitions count. Only names, order and types of inputs and outputs matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT: list[Any] = ["STRING", {"default": ""}]
_INT: list[Any] = ["INT", {"default": 0}]
_FLOAT: list[Any] = ["FLOAT", {"default": 0.0}]
_BOOLEAN: list[Any] = ["BOOLEAN", {"default": False}]
_FILES: list[Any] = [[], {}]
_IMAGE, _LATENT, _AUDIO, _VIDEO = ["IMAGE"], ["LATENT"], ["AUDIO"], ["VIDEO"]
_VAE, _CONFIG, _RUN = ["VAE"], ["SERVING_CONFIG"], ["SHOULD_EXECUTE"]
_WORDS = {"display_name": _TEXT, "description": _TEXT}
_RANGE = {"min_value": _FLOAT, "max_value": _FLOAT}
_WHOLE_RANGE = {"min_value": _INT, "max_value": _INT}
_PREFIX = {"filename_prefix": _TEXT}


def _node(
    required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, gives: str = "", *, output: bool = False
) -> dict[str, Any]:
    sections = {"required": dict(required), "optional": dict(optional or {})}
    return {
        "input": sections,
        "input_order": {section: list(inputs) for section, inputs in sections.items()},
        "output": gives.split(),
        "output_node": output,
        "python_module": "nodes",
    }


def _external(gives: str, value: Mapping[str, Any], rest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return _node({"input_id": _TEXT}, {**value, **_WORDS, **(rest or {})}, gives)


_FILM_SIZES = dict.fromkeys(("custom_width", "custom_height", "frame_load_cap", "skip_first_frames"), _INT)

DEFINITIONS: Mapping[str, Mapping[str, Any]] = {
    "ComfyUIDeployExternalText": _external("STRING", {"default_value": _TEXT}),
    "ComfyUIDeployExternalTextAny": _external("*", {"default_value": _TEXT}),
    "ComfyUIDeployExternalBoolean": _node({"input_id": _TEXT, "default_value": _BOOLEAN}, _WORDS, "BOOLEAN"),
    "ComfyUIDeployExternalNumber": _external("FLOAT", {"default_value": _FLOAT}),
    "ComfyUIDeployExternalNumberInt": _external("INT", {"default_value": _INT}),
    "ComfyUIDeployExternalNumberSlider": _external("FLOAT", {"default_value": _FLOAT, **_RANGE}),
    "ComfyUIDeployExternalNumberSliderInt": _external("INT", {"default_value": _INT, **_WHOLE_RANGE}),
    "ComfyUIDeployExternalCheckpoint": _external("*", {"default_value": _FILES}),
    "ComfyUIDeployExternalLora": _node(
        {"input_id": _TEXT},
        {
            "default_lora_name": _FILES,
            "lora_save_name": _TEXT,
            **_WORDS,
            "lora_url": _TEXT,
            "bearer_token": _TEXT,
        },
        "*",
    ),
    "ComfyUIDeployExternalFaceModel": _node(
        {"input_id": _TEXT},
        {"default_face_model_name": _TEXT, "face_model_save_name": _TEXT, **_WORDS, "face_model_url": _TEXT},
        "*",
    ),
    "ComfyUIDeployExternalEnum": _external("*", {"default_value": _TEXT, "options": _TEXT}),
    "ComfyUIDeployExternalSeed": _node({"input_id": _TEXT, "default_value": _INT, **_WHOLE_RANGE}, _WORDS, "INT"),
    "ComfyUIDeployExternalImage": _external("IMAGE", {"default_value": _IMAGE}, {"default_value_url": _TEXT}),
    "ComfyUIDeployExternalImageAlpha": _external("IMAGE", {"default_value": _IMAGE}),
    "ComfyUIDeployExternalImageBatch": _node(
        {"input_id": _TEXT, "images": _TEXT}, {"default_value": _IMAGE, **_WORDS}, "IMAGE"
    ),
    "ComfyDeployWebscoketImageInput": _node(
        {"input_id": _TEXT, "seed": _INT}, {"default_value": _IMAGE, "client_id": _TEXT}, "IMAGE"
    ),
    "ComfyUIDeployExternalAudio": _node(
        {"input_id": _TEXT, "audio_file": _TEXT}, {"default_value": _AUDIO, **_WORDS}, "AUDIO"
    ),
    "ComfyUIDeployExternalVideo": _node(
        {
            "input_id": _TEXT,
            "force_rate": _INT,
            "force_size": _FILES,
            **_FILM_SIZES,
            "select_every_nth": ["INT", {"default": 1}],
        },
        {
            "meta_batch": ["VHS_BatchManager"],
            "vae": _VAE,
            "default_video": _FILES,
            **_WORDS,
            "default_value_url": _TEXT,
        },
        "IMAGE INT AUDIO VHS_VIDEOINFO LATENT",
    ),
    "ComfyUIDeployExternalVid": _node(
        {"input_id": _TEXT}, {"meta_batch": ["VHS_BatchManager"], "default_value": _FILES}, "STRING"
    ),
    "ComfyUIDeployExternalFile": _node({"input_id": _TEXT}, {**_WORDS, "file_url": _TEXT}, "*"),
    "ComfyDeployOutputImage": _node(
        {"images": _IMAGE, **_PREFIX, "file_type": _FILES, "quality": _INT}, {"output_id": _TEXT}, output=True
    ),
    "ComfyDeployWebscoketImageOutput": _node(
        {"output_id": _TEXT, "images": _IMAGE, "file_type": _FILES, "quality": _INT},
        {"client_id": _TEXT},
        output=True,
    ),
    "CPackInputImage": _node({"image": [[], {"image_upload": True}]}, None, "IMAGE MASK"),
    "CPackInputString": _node({"value": _TEXT}, None, "STRING"),
    "CPackInputInt": _node({"value": _INT}, {"min": _INT, "max": _INT}, "INT"),
    "CPackInputFile": _node({"path": _TEXT}, None, "*"),
    "CPackOutputImage": _node({"images": _IMAGE, **_PREFIX}, output=True),
    "CPackOutputAudio": _node({"audio": _AUDIO, **_PREFIX}, output=True),
    "CPackOutputVideo": _node({"video": _VIDEO, **_PREFIX, "format": _FILES, "codec": _FILES}, output=True),
    "ServingInputText": _node({"serving_config": _CONFIG, "argument": _TEXT, "default": _TEXT}, None, "STRING"),
    "ServingInputTextImage": _node(
        {"serving_config": _CONFIG, "argument": _TEXT, "default_prompt": _TEXT},
        {"default_image": _IMAGE},
        "STRING IMAGE",
    ),
    "ServingInputNumber": _node(
        {"serving_config": _CONFIG, "argument": _TEXT, "default": _FLOAT, **_RANGE, "step": _FLOAT},
        None,
        "FLOAT INT STRING",
    ),
    "ServingInputImage": _node({"serving_config": _CONFIG}, {"default_image": _IMAGE}, "IMAGE"),
    "ServingInputImageAsLatent": _node(
        {"serving_config": _CONFIG, "vae": _VAE, "default_latent": _LATENT}, None, "LATENT"
    ),
    "ServingOutput": _node(
        {"serving_config": _CONFIG, "image": _IMAGE, "frame_duration": _INT},
        {"chained_execution": _RUN},
        "SHOULD_EXECUTE",
    ),
    "ServingMultiImageOutput": _node(
        {"serving_config": _CONFIG, "images": _IMAGE}, {"chained_execution": _RUN}, "SHOULD_EXECUTE"
    ),
    "ServingTextOutput": _node(
        {"serving_config": _CONFIG, "text": _TEXT}, {"chained_execution": _RUN}, "SHOULD_EXECUTE"
    ),
    "DiscordServing": _node({"discord_token": _TEXT}, None, "SERVING_CONFIG"),
    "WebSocketServing": _node({"websocket_url": _TEXT}, None, "SERVING_CONFIG"),
    "HTTPServing": _node(
        {"port": _INT, "enable_cross_origin_requests": _BOOLEAN, "html_content": _TEXT}, None, "SERVING_CONFIG"
    ),
    "CommandPickerServing": _node(
        {"serving_config": _CONFIG, "command_name": _TEXT, "should_execute": _RUN}, output=True
    ),
    "AlwaysExecute": _node({"serving_config": _CONFIG, "should_execute": _RUN}, output=True),
}
"""By class, in the form of ``/object_info``."""
