"""Names of owners, and their series in the metrics."""

from __future__ import annotations

from comfyui.metrics import Metrics
from comfyui.owners import KeyRules, key_of, owner_of, person_of


def test_an_owner_is_a_key_and_the_person_behind_it() -> None:
    for key, person in (("app", ""), ("app", "eve"), ("app", "a/b")):
        owner = owner_of(key, person)
        assert (key_of(owner), person_of(owner)) == (key, person)


def test_a_user_sees_only_the_jobs_of_its_key() -> None:
    user = KeyRules(name="app", role="user")
    assert [user.sees(owner) for owner in ("app", "app/eve", "app-2", "ap", None)] == [True, True, False, False, False]
    assert all(KeyRules(name="x", role=role).sees(owner) for role in ("read", "admin") for owner in ("app", None))


def test_metrics_have_at_most_a_hundred_names_of_keys() -> None:
    metrics = Metrics()
    labels = {metrics.key_label(f"customer-{number}/person-{number}") for number in range(500)}
    assert len(labels) == 101
    assert "other" in labels
    assert metrics.key_label("key-0123abcd") == "API_KEYS"
    assert metrics.key_label("customer-3") == "customer-3"
