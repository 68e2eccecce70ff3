"""KEYS_FILE: its fields, the refusals with their texts, and names that are used again."""

from __future__ import annotations

import argparse
import hashlib
import re
import stat
import tomllib
from pathlib import Path

import pytest

from comfyui.exceptions import SettingsError
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.keys_command import add_arguments, add_key, rotate_key, run
from comfyui.web.front.keys_file import KeysFile, KnownNames, parse_keys, signing_secret
from config import Settings
from tests.support.keys import ALICE, BOB, KEY, KEYS, table, write_keys

_HASH = "a" * 64


def test_a_table_is_read_with_all_its_fields() -> None:
    (key,) = parse_keys(
        table(
            "acme",
            ALICE,
            webhook_secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            max_queued=5,
            per_minute=60,
            max_running=2,
            max_priority=-3,
            weight=2.5,
            user_header="X-User",
            workflows=["portrait", "upscale"],
        )
    )
    rules = key.rules
    assert (rules.name, rules.role, rules.max_queued, rules.per_minute, rules.max_running) == ("acme", "user", 5, 60, 2)
    assert (rules.max_priority, rules.weight, rules.user_header) == (-3, 2.5, "x-user")
    assert rules.workflows == frozenset({"portrait", "upscale"})
    assert "MfKQ9r8" not in repr(key)
    assert key.digest.hex() not in repr(key)


@pytest.mark.parametrize(("role", "highest"), [("user", 0), ("read", 1_000_000), ("admin", 1_000_000)])
def test_a_user_may_raise_its_priority_only_if_its_table_allows_it(role: str, highest: int) -> None:
    assert parse_keys(table("a", ALICE, role))[0].rules.max_priority == highest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[keys.alice]\nsha256 = \n", "not TOML: Invalid value (at line 2, column 10)"),
        ("[alice]\n", "line 1: 'alice' is unknown; each key must be a table [keys.NAME]"),
        ("keys = 3\n", "keys must consist of tables [keys.NAME]"),
        ("[keys]\nalice = 3\n", "line 2: keys.alice must be a table [keys.alice]"),
        (f'\n[keys.alice]\nsha256 = "{_HASH}"\n', "line 2: [keys.alice] role: Field required"),
        (f'[keys.alice]\nsha256 = "{_HASH}"\nrole = "boss"\n', "line 3: [keys.alice] role: Input should be"),
        (
            f'[keys.alice]\nrole = "user"\nsha256 = "{_HASH[1:]}"\n',
            "line 3: [keys.alice] sha256: must be 64 hex digits",
        ),
        (
            f'[keys.alice]\nsha256 = "{_HASH}\\n"\nrole = "user"\n',
            "line 2: [keys.alice] sha256: must be 64 hex digits",
        ),
        (table("alice", ALICE, user_header="X User"), "line 4: [keys.alice] user_header: must be the name of a header"),
        (
            '[keys.a]\nsha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"\nrole = "user"\n',
            "line 2: [keys.a] sha256: must not be the SHA-256 of an empty key",
        ),
        (table("alice", ALICE, colour="red"), "line 4: [keys.alice] colour: there is no such field"),
        (table("alice", ALICE, per_minute=0), "line 4: [keys.alice] per_minute: Input should be greater"),
        (table("alice", ALICE, max_queued="5"), "line 4: [keys.alice] max_queued: Input should be a valid integer"),
        (
            table("alice", ALICE, user_header="Cookie"),
            "line 4: [keys.alice] user_header: must not be a header with another",
        ),
        (table("alice", ALICE, webhook_secret="short"), "line 4: [keys.alice] webhook_secret: "),
        (table("alice", ALICE, webhook_secret="no base64, but long enough"), "webhook_secret: a secret must be base64"),
        (table("Alice", ALICE), "line 1: [keys.'Alice']: a key's name must be 1 to 64 lower-case letters"),
        (table("key-0123abcd", ALICE), "line 1: [keys.key-0123abcd]: the gateway reserves this name for itself"),
        (table("external", ALICE), "line 1: [keys.external]: the gateway reserves this name for itself"),
        (table("alice", ALICE) + table("bob", ALICE), "line 5: [keys.bob] has the same sha256 as [keys.alice]"),
    ],
)
def test_an_error_names_its_line_key_and_field(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        parse_keys(text)
    # A weak key can be guessed from its hash, so no message has a hash.
    assert _HASH[1:] not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "the file must be text in UTF-8"),
        (b"[keys.alice]\nrole = 'user'\n", "line 1: [keys.alice] sha256: Field required"),
        (None, "the file cannot be read: No such file or directory"),
    ],
)
def test_a_broken_file_stops_the_start(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "keys.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        Settings(keys_file=path, state_dir=None).options()
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"KEYS_FILE ({path}): ")


def test_a_key_in_both_the_file_and_api_keys_is_refused(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", KEY))
    with pytest.raises(SettingsError, match="is also in API_KEYS; remove it from one of the two"):
        Settings(keys_file=path, state_dir=None, api_keys=KEY).options()  # type: ignore[arg-type]


def test_a_file_without_keys_admits_no_caller(tmp_path: Path) -> None:
    """An empty file must not open the gateway to everyone."""
    ring = Settings(keys_file=write_keys(tmp_path / "keys.toml", ""), state_dir=None).options().app.keys
    assert ring
    assert ring.caller(b"") is None


# Names that are used again


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_removed_name_may_come_back_only_with_its_own_key(tmp_path: Path, in_memory: bool) -> None:
    path, state_dir = tmp_path / "keys.toml", None if in_memory else tmp_path / "state"
    file = KeysFile(path, state_dir)

    def use(text: str) -> None:
        nonlocal file
        if not in_memory:
            file = KeysFile(path, state_dir)  # as after a restart
        write_keys(path, text)
        file.remember(file.load())

    use(KEYS)
    use(table("bob", BOB))
    with pytest.raises(ValueError, match=r"\[keys.alice\]: a key that was removed had this name"):
        use(table("bob", BOB) + table("alice", "the key of someone else"))
    use(table("bob", BOB) + table("alice", ALICE))
    # A new key for an existing name belongs to the same customer.
    use(table("bob", "bob's new key") + table("alice", ALICE))
    use(table("alice", ALICE))
    use(table("alice", ALICE) + table("bob", "bob's new key"))


def test_only_the_gateways_user_may_read_its_files_in_the_state_folder(tmp_path: Path) -> None:
    file = KeysFile(write_keys(tmp_path / "keys.toml", KEYS), tmp_path / "state")
    file.remember(file.load())
    assert signing_secret(tmp_path / "state") == signing_secret(tmp_path / "state")
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


# `keys add`


def test_keys_add_keeps_comments_and_adds_a_key_that_the_gateway_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"# Customers\n{table('alice', ALICE)}# the largest\n")
    path.chmod(0o640)
    key = add_key(path, None, "carol", {"role": "user", "max_queued": 3, "weight": None})
    written = path.read_text()
    assert written.startswith("# Customers\n[keys.alice]")
    assert "# the largest" in written
    assert key not in written
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert tomllib.loads(written)["keys"]["carol"].keys() == {"sha256", "role", "max_queued"}
    caller = KeyRing([], session_s=60, named=parse_keys(written)).caller(key.encode())
    assert caller is not None
    assert (caller.rules.name, caller.rules.max_queued) == ("carol", 3)


@pytest.mark.parametrize(
    ("options", "workflows"),
    [((), None), (("--workflow", "portrait", "--workflow", "upscale"), frozenset({"portrait", "upscale"}))],
)
def test_keys_add_can_limit_a_key_to_some_named_workflows(
    tmp_path: Path, options: tuple[str, ...], workflows: frozenset[str] | None
) -> None:
    path, parser = tmp_path / "keys.toml", argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(["add", "shop", "--role", "user", *options]), path, None)
    (key,) = parse_keys(path.read_text())
    assert key.rules.workflows == workflows


def test_keys_add_creates_a_file_that_only_its_user_may_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.toml"
    keys = [add_key(path, None, name, {"role": "read"}) for name in ("a", "b")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(set(keys)) == 2
    assert [key.rules.name for key in parse_keys(path.read_text())] == ["a", "b"]


@pytest.mark.parametrize("name", ["alice", "gone", "Not A Name", "key-0123abcd"])
def test_keys_add_refuses_unusable_names_and_leaves_the_file_alone(tmp_path: Path, name: str) -> None:
    path, state_dir = write_keys(tmp_path / "keys.toml", table("alice", ALICE)), tmp_path / "state"
    names = KnownNames(state_dir / "key-names.json")
    names.take_over(parse_keys(table("gone", BOB)))
    with pytest.raises(SettingsError):
        add_key(path, state_dir, name, {"role": "user"})
    assert path.read_text() == table("alice", ALICE)


# `keys rotate`


def test_a_rotated_key_and_the_one_before_it_are_the_same_caller_until_the_old_one_is_removed(tmp_path: Path) -> None:
    path = write_keys(
        tmp_path / "keys.toml", f"{table('alice', ALICE, max_queued=3)}\n# the largest\n{table('bob', BOB)}"
    )
    ring = KeyRing([], session_s=60, named=parse_keys(path.read_text()))
    session, signed = ring.open_session(ALICE.encode()), ring.sign(ring.callers()[0], "a link")
    assert session is not None

    key = rotate_key(path, "alice")
    ring.set_named(parse_keys(path.read_text()))
    new, old = ring.caller(key.encode()), ring.caller(ALICE.encode())
    assert new is not None
    assert old is not None
    assert (new.rules, new.namespace, new.owner) == (old.rules, old.namespace, "alice")
    assert ring.named() == ["alice", "bob"]
    assert len(ring.callers()) == 2
    assert ring.caller_named("alice") is new
    assert ring.session_caller(session) is old
    assert ring.signer_of("a link", signed) is old
    assert ring.signer_of("a link", ring.sign(new, "a link")) is new
    assert "# the largest\n[keys.bob]" in path.read_text()

    with pytest.raises(SettingsError, match=r"\[keys.alice\] has an old_sha256, which is still valid"):
        rotate_key(path, "alice")

    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("old_sha256")))
    ring.set_named(parse_keys(path.read_text()))
    assert ring.caller(key.encode()) is not None
    assert ring.caller(ALICE.encode()) is None
    assert ring.session_caller(session) is None
    assert ring.signer_of("a link", signed) is None


def test_only_an_existing_key_can_be_rotated(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE))
    with pytest.raises(SettingsError, match=r"there is no key \[keys.bob\]"):
        rotate_key(path, "bob")
    assert path.read_text() == table("alice", ALICE)


def test_an_old_key_is_valid_for_one_name_only() -> None:
    alices = hashlib.sha256(ALICE.encode()).hexdigest()
    with pytest.raises(ValueError, match=r"line 7: \[keys.bob\] has the same old_sha256 as \[keys.alice\]"):
        parse_keys(table("alice", ALICE) + table("bob", BOB, old_sha256=alices))
    ring = KeyRing([ALICE], session_s=60, named=())
    with pytest.raises(ValueError, match="is also in API_KEYS"):
        ring.check_named(parse_keys(table("bob", BOB, old_sha256=alices)))


# Sessions and callers


def test_a_reader_of_the_keys_file_cannot_make_a_session() -> None:
    """The file has hashes only. Sessions are signed with a secret that is not in the file."""
    named = parse_keys(KEYS)
    first, second = (KeyRing([], session_s=60, named=named, secret=secret) for secret in (b"a" * 32, b"b" * 32))
    token = first.open_session(ALICE.encode())
    assert token is not None
    assert first.session_caller(token)
    assert not second.session_caller(token)
    assert KeyRing([], session_s=60, named=named, secret=b"a" * 32).session_caller(token)  # as after a restart


def test_a_session_ends_with_its_key_and_survives_other_changes() -> None:
    ring = KeyRing([], session_s=60, named=parse_keys(KEYS))
    token = ring.open_session(ALICE.encode())
    assert token is not None
    ring.set_named(parse_keys(table("alice", ALICE, max_queued=1)))
    caller = ring.session_caller(token)
    assert caller is not None
    assert caller.rules.max_queued == 1
    ring.set_named(parse_keys(table("alice", "another key")))
    assert not ring.session_caller(token)


def test_idempotency_keys_belong_to_the_name_and_survive_a_new_key() -> None:
    ring = KeyRing([], session_s=60, named=parse_keys(KEYS))
    alice, bob = (ring.caller(key.encode()) for key in (ALICE, BOB))
    assert alice is not None
    assert bob is not None
    assert alice.namespace != bob.namespace
    ring.set_named(parse_keys(table("alice", "another key")))
    again = ring.caller(b"another key")
    assert again is not None
    assert again.namespace == alice.namespace


def test_a_person_has_the_present_rules_of_its_key() -> None:
    ring = KeyRing(["own"], session_s=60, named=parse_keys(table("alice", ALICE, weight=2.0)))
    before, rules = ring.version, ring.rules_of("alice/person")
    assert rules is not None
    assert (rules.name, rules.weight) == ("alice", 2.0)
    assert ring.caller_named("alice/person") == ring.caller(ALICE.encode())
    ring.set_named(parse_keys(table("bob", BOB)))
    assert ring.rules_of("alice/person") is None
    assert ring.version != before
