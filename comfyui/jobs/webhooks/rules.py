"""`WebhookRules`: which webhooks a request may ask for."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui.exceptions import NotPermittedError, RequestError
from comfyui.owners import KeyRules, is_given_name
from comfyui.transport.address_guard import AddressPolicy, parse_url

_BY_KEY = frozenset({"WEBHOOK_SECRET"})


class WebhookRules:
    """The settings of callers' webhooks.

    Args:
        missing: the settings that webhooks need and that are not set.
        allow: of WEBHOOK_URL_ALLOW; see `AddressPolicy`.
    """

    def __init__(self, missing: Sequence[str] = (), allow: Sequence[str] = ()) -> None:
        self._missing = tuple(missing)
        self._policy = AddressPolicy(allow)

    def check_enabled(self, rules: KeyRules | None) -> None:
        """Raises `RequestError` if the gateway sends no webhooks for this key; None: without keys."""
        missing = self._missing
        if rules is not None and not is_given_name(rules.name):
            # A key of KEYS_FILE has its own secret.
            if rules.webhook_secret is None:
                raise RequestError(f"webhook: the key {rules.name!r} has no webhook_secret in KEYS_FILE")
            missing = tuple(name for name in missing if name not in _BY_KEY)
        if missing:
            named = f"{' and '.join(missing)} {'are' if missing[1:] else 'is'}"
            raise RequestError(f"webhook: the gateway sends no webhooks, because {named} not set")

    def check(self, url: str, rules: KeyRules | None = None) -> None:
        """Raise `RequestError` for a URL that nothing would be sent to.

        A name is looked up only when it is connected to: it may have another address by then.
        """
        self.check_enabled(rules)
        if not url.isprintable() or " " in url:
            raise RequestError("webhook.url must be a valid URL")
        try:
            self._policy.checked(parse_url(url))
        except NotPermittedError:
            raise RequestError("webhook.url must have a public address; WEBHOOK_URL_ALLOW lists exceptions") from None
        except ValueError as error:
            raise RequestError(f"webhook.url: {error}") from None
