"""The media type of a file by its name, and the query by which ComfyUI serves it."""

from __future__ import annotations

import mimetypes
import re
from functools import lru_cache
from urllib.parse import urlencode

# Types that Python's table lacks or that differ between systems; everything a ComfyUI node is known to save.
_CONTENT_TYPES = {
    ".avif": "image/avif",
    ".exr": "image/x-exr",
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".latent": "application/octet-stream",
    ".m4a": "audio/mp4",
    ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".obj": "model/obj",
    ".opus": "audio/ogg",
    ".safetensors": "application/octet-stream",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
# Characters that need no quoting in a query.
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")


def content_type_of(filename: str) -> str:
    """The media type by the name's ending; ``application/octet-stream`` when nothing is known."""
    return _type_of_ending(filename[filename.rfind(".", 1) :] if "." in filename else "")


@lru_cache(maxsize=256)
def _type_of_ending(ending: str) -> str:
    known = _CONTENT_TYPES.get(ending.lower())
    return known or mimetypes.guess_type(f"file{ending}")[0] or "application/octet-stream"


@lru_cache(maxsize=256)
def view_query(filename: str, subfolder: str, folder_type: str) -> str:
    """The query of ComfyUI's ``/view`` for a file."""
    if _PLAIN.fullmatch(filename + subfolder + folder_type):
        # The same as below, in a tenth of the time.
        return f"filename={filename}&subfolder={subfolder}&type={folder_type}".replace("/", "%2F")
    # A name that is not UTF-8 on ComfyUI's disk has lone surrogates: ComfyUI answers that there is no such file.
    query = {"filename": filename, "subfolder": subfolder, "type": folder_type}
    return urlencode(query, errors="surrogatepass")
