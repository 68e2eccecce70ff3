"""A signed link opens its own file and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from yarl import URL

from comfyui.models import OutputFile
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.tickets import Tickets
from tests.support.keys import KEY, OTHER_KEY

_PUBLIC = "https://example.org/comfy"
_RING = KeyRing([KEY, OTHER_KEY], session_s=60)
_CALLER = _RING.caller(KEY.encode())
assert _CALLER is not None
_OWNER = _CALLER.owner
_NOW = 1_000_000.0
_FILE = OutputFile("9", "images", "a_00001_.png", "sub", "output")
_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def _tickets(ring: KeyRing = _RING, public_url: str = _PUBLIC, now: float = _NOW) -> Tickets:
    return Tickets(ring, public_url=public_url, link_s=600, clock=lambda: now)


def _scope(target: str, method: str = "GET", kind: str = "http") -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query.encode("utf-8", "surrogatepass"),
    }


def _link(file: OutputFile = _FILE) -> str:
    """The link as the gateway gets it behind a proxy that strips the path."""
    return _tickets().link(_OWNER, file.url).removeprefix(_PUBLIC)


def test_a_link_opens_its_file_with_the_rights_of_the_owner() -> None:
    link = _tickets().link(_OWNER, _FILE.url)
    assert link.startswith(f"{_PUBLIC}{_FILE.url}&ticket=")
    for method in ("GET", "HEAD"):
        opened = _tickets().redeem(_scope(_link(), method))
        assert opened is not None
        assert opened[0] == _CALLER
        assert opened[1]["query_string"] == _FILE.url.partition("?")[2].encode()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "QUERY"])
def test_a_link_opens_only_with_get_and_head(method: str) -> None:
    assert _tickets().redeem(_scope(_link(), method)) is None


def test_a_link_opens_no_websocket() -> None:
    assert _tickets().redeem(_scope(_link(), kind="websocket")) is None


def test_a_link_is_valid_until_its_expiry_and_only_with_its_key_and_gateway() -> None:
    link = _link()
    assert _tickets(now=_NOW + 599).redeem(_scope(link))
    assert _tickets(now=_NOW + 600).redeem(_scope(link)) is None
    # The link stays valid after a restart and in other processes that have the key anywhere in their list.
    assert _tickets(KeyRing([OTHER_KEY, KEY], session_s=1)).redeem(_scope(link))
    assert _tickets(KeyRing([OTHER_KEY], session_s=1)).redeem(_scope(link)) is None
    # Another gateway with the same keys has other files.
    for elsewhere in ("https://staging.example.org/comfy", "https://example.org", "http://example.org/comfy", ""):
        assert _tickets(public_url=elsewhere).redeem(_scope(link)) is None


def test_no_link_is_signed_without_keys_or_for_a_removed_key() -> None:
    for ring, owner in ((KeyRing([], session_s=1), None), (_RING, None), (_RING, "key-00000000")):
        assert _tickets(ring).link(owner, _FILE.url) == f"{_PUBLIC}{_FILE.url}"


def test_a_link_changes_only_with_its_expiry() -> None:
    assert _tickets().link(_OWNER, _FILE.url) == _tickets().link(_OWNER, _FILE.url)
    assert _tickets().link(_OWNER, _FILE.url) != _tickets(now=_NOW + 1).link(_OWNER, _FILE.url)


@pytest.mark.parametrize("position", range(len(_link()) - len(_FILE.url)))
def test_a_link_with_a_changed_character_of_the_ticket_opens_nothing(position: int) -> None:
    link, at = _link(), len(_FILE.url) + position
    for other in "0aZ.-&%":
        if link[at] != other:
            assert _tickets().redeem(_scope(f"{link[:at]}{other}{link[at + 1 :]}")) is None, (position, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda link: link.replace("/view", "/api/view"),
        lambda link: link.replace("/view", "//view"),
        lambda link: link.replace("/view", "/./view"),
        lambda link: link.replace("/view", "/x/../view"),
        lambda link: link.replace("/view", "/view/"),
        lambda link: link.replace("/view", "/%76iew"),
        lambda link: link.replace("/view", "/VIEW"),
        lambda link: link.replace("/view", "/view;x=1"),
        lambda link: link.replace("/view", "/queue"),
        lambda link: link.replace("a_00001_", "a_00002_"),
        lambda link: link.replace("a_00001_", "%61_00001_"),
        lambda link: link.replace("filename=", "%66ilename="),
        lambda link: link.replace("subfolder=sub", "subfolder=..%2Fsub"),
        lambda link: link.replace("subfolder=sub", "subfolder="),
        lambda link: link.replace("type=output", "type=input"),
        lambda link: link.replace("type=output", "type=output&type=input"),
        lambda link: link.replace("type=output", "type=output&preview=webp"),
        lambda link: link.replace("&type=output", ""),
        lambda link: link.replace("&type=output&", "&&type=output&"),
        lambda link: link.replace("subfolder=sub&type=output", "type=output&subfolder=sub"),
        lambda link: link.replace("&type", ";type"),
        lambda link: link.replace("?", "?filename=b.png&"),
        lambda link: link.replace("?", "??"),
        lambda link: link.replace("?", "?&"),
        lambda link: link.replace("&ticket=", "&Ticket="),
        lambda link: link.replace("&ticket=", "&ticket=&ticket="),
        lambda link: f"/view?{link.partition('&ticket=')[2]}&{link.partition('&ticket=')[0].partition('?')[2]}",
        lambda link: f"/view?ticket={link.partition('ticket=')[2]}&{_FILE.url.partition('?')[2]}",
        lambda link: f"{link}&filename=b.png",
        lambda link: f"{link}&ticket=1.link.0",
        lambda link: f"{link}&",
        lambda link: f"{link}#x",
        lambda link: f"{link}%00",
        lambda link: f"{link} ",
        lambda link: link.upper(),
        lambda link: link.replace(".link.", "."),
        lambda link: link.replace(".link.", ".GET."),
        lambda link: link.replace(".link.", ".link.link."),
    ],
)
def test_a_link_in_another_spelling_opens_nothing(change: Any) -> None:
    changed = change(_link())
    assert changed != _link()
    assert _tickets().redeem(_scope(changed)) is None


@given(st.data())
def test_a_randomly_changed_link_opens_nothing(data: st.DataObject) -> None:
    link = _link(OutputFile("9", "images", data.draw(_names), data.draw(_names), "output"))
    changed = link
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        stop = data.draw(st.integers(start, min(len(changed), start + 8)))
        other = data.draw(st.text("0a.%27&=?/'\\x00é+", max_size=4))
        changed = changed[:start] + other + changed[stop:]
    assume(changed.replace("'", "%27") != link)
    assert _tickets().redeem(_scope(changed)) is None


@given(_names, _names)
def test_clients_send_a_link_unchanged(filename: str, subfolder: str) -> None:
    """aiohttp decodes some characters of an address, so a link has them decoded from the start."""
    link = _link(OutputFile("9", "images", filename, subfolder, "output"))
    sent = str(URL(f"https://example.org{link}").relative())
    assert sent.replace("'", "%27") == link
    # Browsers encode the quote, which aiohttp sends as it is.
    assert _tickets().redeem(_scope(sent))
    assert _tickets().redeem(_scope(link))
    assert dict(URL(link, encoded=True).query)["filename"] == filename


def test_a_ticket_cannot_become_a_link_nor_a_link_a_ticket() -> None:
    tickets = _tickets()
    assert _CALLER is not None
    ticket = tickets.make(_CALLER, _FILE.url, websocket=False)["ticket"]
    expiry, nonce, signature = ticket.split(".")
    assert tickets.redeem(_scope(f"{_FILE.url}&ticket={expiry}.{nonce}.{signature}"))
    assert tickets.redeem(_scope(f"{_FILE.url}&ticket={expiry}.link.{signature}")) is None
    link = _link()
    assert tickets.redeem(_scope(link.replace(".link.", f".{nonce}."))) is None
    assert not _RING.session_caller(link.partition("ticket=")[2])
