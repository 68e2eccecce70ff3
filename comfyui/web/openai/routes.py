"""The routes of OpenAI's image API. They stand in no document of ours: OpenAI's has them."""

from __future__ import annotations

from fastapi import APIRouter

from comfyui.web.openai import images

router = APIRouter()

for path, method, endpoint in (
    ("/images/generations", "POST", images.generations),
    ("/images/edits", "POST", images.edits),
    ("/images/{prompt_id}/{name}", "GET", images.picture),
    ("/models", "GET", images.models),
    ("/models/{model}", "GET", images.model),
):
    router.add_route(f"/v1{path}", endpoint, methods=[method], include_in_schema=False)
