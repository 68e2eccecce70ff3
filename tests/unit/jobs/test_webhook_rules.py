"""Webhooks: signatures, the plan of tries and the accepted URLs."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from comfyui.exceptions import RequestError
from comfyui.jobs.webhooks.plan import DELAYS_S, LONGEST_WAIT_S, TRIES, wait_s
from comfyui.jobs.webhooks.rules import WebhookRules
from comfyui.jobs.webhooks.signing import Signer, key_of

_SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
_OTHER = base64.b64encode(bytes(range(24))).decode()


def now() -> float:
    return datetime.now(UTC).timestamp()


def test_a_signature_equals_that_of_standard_webhooks() -> None:
    at = datetime.fromtimestamp(int(now()), UTC)
    headers = Signer([_SECRET]).headers("msg_1", at.timestamp(), b'{"a": 1}')
    assert headers["webhook-signature"] == Webhook(_SECRET).sign("msg_1", at, '{"a": 1}')
    assert headers["webhook-timestamp"] == str(int(at.timestamp()))


@given(text=st.text(st.characters(exclude_categories=["Cs"])), name=st.text("msg_0123456789abcdef", min_size=1))
def test_a_signature_verifies_only_its_own_body_and_id(text: str, name: str) -> None:
    body = text.encode()
    headers = Signer([_SECRET]).headers(name, now(), body)
    Webhook(_SECRET).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(_SECRET).verify(body + b" ", headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(_SECRET).verify(body, {**headers, "webhook-id": "x"}, json_parse=False)


def test_all_secrets_sign_during_a_rotation() -> None:
    headers = Signer([_OTHER, _SECRET]).headers("msg_1", now(), b"{}")
    for secret in (_OTHER, _SECRET, f"whsec_{_OTHER}"):
        Webhook(secret).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"x" * 32).decode()).verify(b"{}", headers)


def test_a_webhook_with_an_old_timestamp_fails_verification() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(_SECRET).verify(b"{}", Signer([_SECRET]).headers("msg_1", now() - 301, b"{}"))


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "plain text as a secret, which is long enough",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        base64.urlsafe_b64encode(b"\xff" * 32).decode(),
        "whsec_" + base64.b64encode(b"x" * 32).decode() + "é",
        "WHSEC_" + base64.b64encode(b"x" * 32).decode(),
        base64.b64encode(b"x" * 32).decode()[:-3],
    ],
)
def test_a_secret_that_receivers_may_read_differently_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        key_of(secret)
    assert len(secret) < 7 or secret not in str(caught.value)


def test_padding_and_prefix_of_a_secret_are_optional() -> None:
    key = b"k" * 25
    text = base64.b64encode(key).decode()
    assert {key_of(text), key_of(text.rstrip("=")), key_of(f"whsec_{text}")} == {key}


# The plan


def test_there_are_ten_tries_over_a_day() -> None:
    longest = [wait_s(failures, jitter=lambda _low, high: high) for failures in range(1, 12)]
    assert longest == [*DELAYS_S, None, None]
    assert (TRIES, sum(DELAYS_S)) == (10, 86_400.0)


@given(asked=st.lists(st.floats(0, 1e12, allow_nan=False), min_size=TRIES, max_size=TRIES), share=st.floats(0.0, 1.0))
def test_every_delay_is_bounded_and_longer_than_the_one_before(asked: list[float], share: float) -> None:
    total = planned = last_s = 0.0
    for failures, asked_s in enumerate(asked, 1):
        delay_s = wait_s(failures, asked_s, lambda low, high: low + share * (high - low))
        if failures == TRIES:
            assert delay_s is None
            return
        assert delay_s is not None
        own_s = wait_s(failures, 0.0, lambda low, high: low + share * (high - low))
        assert own_s is not None
        assert own_s > last_s, "each delay is longer than the last"
        assert delay_s == max(own_s, min(asked_s, LONGEST_WAIT_S)), "the receiver's wish is followed within bounds"
        last_s, total, planned = own_s, total + delay_s, planned + own_s
        assert planned <= 86_400
        assert total <= 86_400 + failures * LONGEST_WAIT_S


# Accepted URLs

_RULES = WebhookRules(allow=["10.1.2.3", "hooks.internal", "127.0.0.1:9000"])


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "https://example.org/a?token=1",
        "http://bücher.example/ä",
        "http://10.1.2.3/x",
        "http://127.0.0.1:9000/",
        "http://0x7f.1:9000/",
        "http://localhost/",  # a name's address is checked at the connection
        "https://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
    ],
)
def test_a_public_or_allowed_url_is_accepted(url: str) -> None:
    _RULES.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:9001/",
        "http://127.1/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://127.0.0.1./",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://１２７.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "http://100.64.0.1/",
        "http://[fe80::1%25eth0]/",
    ],
)
def test_a_url_with_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"webhook\.url must (have a public address; WEBHOOK_URL_ALLOW|be a valid)"):
        _RULES.check(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "http"),
        ("example.org/hook", "http"),
        ("ftp://example.org/", "http"),
        ("file:///etc/passwd", "http"),
        ("gopher://example.org/", "http"),
        ("https://user:geheim@example.org/", "user or password"),
        ("https://user@example.org/", "user or password"),
        ("https://:geheim@example.org/", "user or password"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("http://[", "valid"),
        ("http://exa mple.org/", "valid"),
        ("http://example.org:99999/", "valid"),
        ("http://example.org:0/", "port 0"),
        ("http://example.org/\r\nX-Injected: 1", "valid"),
        ("http://example.org\r\n/", "valid"),
        ("http://example.org/\tx", "valid"),
        ("http://example.org/\x00", "valid"),
        ("http://example.org/\ud800", "valid"),
        ("http://exa$mple.org/", "valid"),
    ],
)
def test_an_unsuitable_url_is_refused_without_showing_its_password(url: str, reason: str) -> None:
    with pytest.raises(RequestError, match=rf"webhook\.url.* .*{reason}") as caught:
        _RULES.check(url)
    assert "geheim" not in caught.value.detail


@pytest.mark.parametrize("missing", [("WEBHOOK_SECRET",), ("WEBHOOK_SECRET", "PUBLIC_URL")])
def test_webhooks_are_refused_while_their_settings_are_missing(missing: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        WebhookRules(missing).check("https://example.org")
    assert all(name in caught.value.detail for name in missing)
