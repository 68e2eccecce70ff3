"""What all pages of the console share: headers, static files, links that work below any path, and error pages."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import aiohttp

from comfyui.engine import Engine
from comfyui.web.console import texts
from comfyui.web.console.static_files import static_files
from tests.support.running import running_gateway

CONSOLE = Path(texts.__file__).parent
# The SHA-256 of dist/idiomorph.min.js in the npm package.
IDIOMORPH = "4cbd535caf7663a51eda9bce6595371c384fc430d54b8d414e29a61167f19f96"


async def test_a_page_loads_and_runs_only_files_of_the_gateway(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, aiohttp.ClientSession() as session:
        async with session.get(f"{gateway.url}/console") as answer:
            assert answer.status == 200
            policy, text = answer.headers["Content-Security-Policy"], await answer.text()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(
            r'<script(?![^>]* src=)[^>]*type="(module|text/javascript)"|\sstyle=|\son\w+=|https?:', text
        )
        loaded = re.findall(r'(?:src|href)="(\./console/static/[^"]+)"', text)
        assert len(loaded) >= 3
        for path in loaded:
            async with session.get(f"{gateway.url}/{path}") as answer:
                assert answer.status == 200
                assert "immutable" in answer.headers["Cache-Control"]


async def test_an_unknown_path_shows_an_error_page(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, gateway.http.get("/console/<b>/none") as answer:
        assert answer.status == 404
        text = await answer.text()
    assert "<b>" not in text
    assert 'href="../../console"' in text


def test_the_copied_library_equals_the_one_on_npm() -> None:
    assert hashlib.sha256(static_files().files["idiomorph-0.8.0.min.js"]).hexdigest() == IDIOMORPH


def test_every_text_is_used_by_a_page_or_module() -> None:
    shown = "".join(
        path.read_text()
        for folder in ("templates", ".")
        for path in (CONSOLE / folder).iterdir()
        if path.suffix in {".html", ".py"}
    )
    for page, found in vars(texts.TEXTS).items():
        for name in vars(found):
            used = re.search(rf"(?:t|TEXTS)\.{page}(?:\.{name}\b|\[)", shown)
            assert used, f"texts.py: nothing shows {page}.{name}"
