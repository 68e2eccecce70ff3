"""The secret that signs a webhook. Each key of KEYS_FILE has its own, so that no receiver learns another's."""

from __future__ import annotations

from comfyui.jobs.journal.records import Audience
from comfyui.jobs.webhooks.signing import Signer
from comfyui.owners import OwnerRules, is_given_name, key_of


class Signers:
    """The signer of each job's webhooks.

    Args:
        settings: of WEBHOOK_SECRET: for the operator's WEBHOOK_URL, for keys of API_KEYS, and without keys.
        owners: knows the secrets of the keys of KEYS_FILE.
    """

    def __init__(self, settings: Signer | None, owners: OwnerRules | None = None) -> None:
        self._settings = settings
        self._owners = owners

    def of(self, owner: str | None, audience: Audience) -> Signer | None:
        """None if there is no secret (any more): then nothing may be sent."""
        if audience == "operator" or owner is None or is_given_name(key_of(owner)):
            return self._settings
        rules = None if self._owners is None else self._owners.rules_of(owner)
        return None if rules is None or rules.webhook_secret is None else Signer([rules.webhook_secret])
