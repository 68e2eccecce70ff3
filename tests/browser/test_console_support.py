"""The checks of the console's pages find faults: each test here shows one fault to a check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.console import PHONE, Console, accessible, fits, focused, open_console, tab_to
from tests.support.keys import ALICE

pytestmark = pytest.mark.timeout(120)

_FINE = "<!doctype html><html lang=en><title>t</title><main><h1>t</h1><a href=#a>One</a> <button>Two</button></main>"


async def test_an_accessibility_fault_is_found(console: Console) -> None:
    await console.page.set_content(_FINE)
    await accessible(console.page)
    await console.page.set_content(_FINE.replace("<button>Two", "<button>").replace("t</h1>", "t</h1><input>"))
    with pytest.raises(AssertionError, match="button-name"):
        await accessible(console.page)


async def test_a_page_too_wide_for_a_phone_is_found() -> None:
    async with open_console(servers=1, size=PHONE) as console:
        await console.page.set_content(_FINE)
        await fits(console.page)
        await console.page.set_content(_FINE.replace("<h1>", "<h1 style='width: 400px'>"))
        with pytest.raises(AssertionError, match="width: 400px"):
            await fits(console.page)


async def test_an_invisible_focus_is_found(console: Console) -> None:
    await console.page.set_content(_FINE)
    await tab_to(console.page, "Two", tag="button")
    assert await focused(console.page) == "button Two"
    await console.page.set_content(_FINE + "<style>* { outline: none !important }</style>")
    with pytest.raises(AssertionError, match="is not visible"):
        await tab_to(console.page, "Two")


async def test_blocked_scripts_and_requests_to_other_hosts_are_found(keys_path: Path) -> None:
    async with open_console(servers=1, keys_file=keys_path) as console:
        await console.open("/login")
        await console.page.evaluate(
            "() => document.body.append(Object.assign(document.createElement('script'), "
            "{ textContent: 'window.ran = true' }))"
        )
        await console.page.wait_for_function("performance.now() > 0")
        assert await console.page.evaluate("window.ran") is None
        (fault,) = console.faults
        assert "Content Security Policy" in fault
        console.faults.clear()
        await console.page.goto("about:blank")
        await console.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => null)")
        assert any("another host: http://127.0.0.1:9/" in one for one in console.faults)
        console.faults.clear()
        await console.sign_in(ALICE)
        assert console.page.url == f"{console.gateway.url}/console"
