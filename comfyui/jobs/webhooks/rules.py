"""`WebhookRules`: which webhooks a request may ask for."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui.exceptions import NotPermittedError, RequestError
from comfyui.transport.address_guard import AddressPolicy, parse_url


class WebhookRules:
    """What the settings say of callers' webhooks.

    Args:
        missing: the settings that webhooks need and that are not set.
        allow: of WEBHOOK_URL_ALLOW; see `AddressPolicy`.
    """

    def __init__(self, missing: Sequence[str] = (), allow: Sequence[str] = ()) -> None:
        self._missing = tuple(missing)
        self._policy = AddressPolicy(allow)

    def check_enabled(self) -> None:
        """Raise `RequestError` where the gateway sends no webhooks."""
        if self._missing:
            named = f"{' and '.join(self._missing)} {'are' if self._missing[1:] else 'is'}"
            raise RequestError(f"webhook: this gateway sends none, since {named} not set")

    def check(self, url: str) -> None:
        """Raise `RequestError` for a URL that nothing would be sent to.

        A name is looked up only when it is connected to: it may have another address by then.
        """
        self.check_enabled()
        if not url.isprintable() or " " in url:
            raise RequestError("webhook.url: not a valid URL")
        try:
            self._policy.checked(parse_url(url))
        except NotPermittedError:
            raise RequestError("webhook.url: the address is not public; WEBHOOK_URL_ALLOW lists exceptions") from None
        except ValueError as error:
            raise RequestError(f"webhook.url: {error}") from None
