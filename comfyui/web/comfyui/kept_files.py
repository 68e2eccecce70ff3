"""A file that the gateway itself has of a prompt, as ``/view`` answers with it: what ran on a platform is fetched."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from comfyui.file_names import content_type_of

# Types that a browser would run with the rights of the gateway's page.
_NEVER_SHOWN = frozenset({"text/html", "text/javascript", "text/css"})
_XML = ("/xml", "+xml")


async def kept_file(request: Request, path: Path) -> Response:
    """The file itself, even if a preview is requested; 404 if it is gone."""
    try:
        status = await asyncio.to_thread(path.stat)
    except OSError:
        return Response(status_code=404)
    content_type = content_type_of(path.name)
    if content_type in _NEVER_SHOWN or content_type.endswith(_XML):
        content_type = "application/octet-stream"
    quoted = path.name.encode("ascii", "replace").decode().replace('"', "_").replace("\n", "_").replace("\r", "_")
    shown = {"Content-Disposition": f'filename="{quoted}"'}
    response = FileResponse(path, headers=shown, media_type=content_type, stat_result=status)
    if request.headers.get("if-none-match") == response.headers["etag"]:
        return Response(status_code=304, headers={"ETag": response.headers["etag"]})
    return response
