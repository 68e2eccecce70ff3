"""`Shares`: how much of the servers each owner has used, and how many jobs an account has on them. Pure.

An owner is charged in executed seconds, divided by its weight. While a job runs, its duration is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from comfyui.owners import KeyRules, OwnerRules, key_of

# The weight of the newest job in an owner's mean duration.
_NEWEST = 0.25
# Before any job has ended.
_FIRST_ESTIMATE_S = 1.0
# How many owners without jobs are remembered with their use, so that a pause does not bring a turn earlier.
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Terms:
    """The limits of an owner.

    Attributes:
        weight: its part of the servers, in proportion to the weights of the others.
        account: whose limit its jobs count against.
        max_running: of the account's jobs on servers at once; None: any number.
    """

    weight: float = 1.0
    account: str | None = None
    max_running: int | None = None


NO_TERMS = Terms()


def terms_of(owner: str | None, rules: KeyRules | None) -> Terms:
    """The rules of the owner's key; no limits if there are none, or if the key was removed."""
    if rules is None:
        return NO_TERMS if owner is None else Terms(account=key_of(owner))
    return Terms(rules.weight, rules.name, rules.max_running)


class OwnerTerms:
    """The limits of each owner, by the present keys. `owners`: None if all have the same."""

    def __init__(self, owners: OwnerRules | None) -> None:
        self._owners = owners
        self._version = 0

    @property
    def may_change(self) -> bool:
        """Whether keys are used, which may change at any time."""
        return self._owners is not None

    def of(self, owner: str | None) -> Terms:
        """The limits of this owner."""
        return terms_of(owner, None if self._owners is None else self._owners.rules_of(owner))

    def have_changed(self) -> bool:
        """Whether anything has changed since the last call."""
        version = 0 if self._owners is None else self._owners.version
        has_changed, self._version = version != self._version, version
        return has_changed


class Ranked(Protocol):
    """A line of jobs in which an owner's place depends on its use."""

    def rank(self, share: Share) -> None: ...


class Account:
    """A limit that several owners may share."""

    __slots__ = ("max_running", "name", "placed", "shares")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.max_running: int | None = None
        self.placed = 0
        self.shares: dict[Share, None] = {}

    @property
    def is_full(self) -> bool:
        return self.max_running is not None and self.placed >= self.max_running

    def limit(self, max_running: int | None) -> None:
        if max_running != self.max_running:
            self.max_running = max_running
            self.rank()

    def count(self, placed: int) -> None:
        self.placed += placed

    def rank(self) -> None:
        for share in self.shares:
            share.rank()


class Share:
    """One owner's part of the servers.

    Attributes:
        number: of the owner; no two have the same.
        used: executed seconds by the weight, which decide whose turn it is.
        mean_s: the recent mean duration of the owner's jobs; None if none has ended yet.
        waiting, placed: how many of the owner's jobs are in a line, and on a server.
    """

    __slots__ = ("_lines", "account", "mean_s", "name", "number", "placed", "used", "waiting", "weight")

    def __init__(self, name: str | None, account: Account, number: int) -> None:
        self.name = name
        self.account = account
        self.number = number
        self.weight = 1.0
        self.used = 0.0
        self.mean_s: float | None = None
        self.waiting = self.placed = 0
        self._lines: dict[Ranked, None] = {}
        account.shares[self] = None

    @property
    def has_jobs(self) -> bool:
        return self.waiting > 0 or self.placed > 0

    def weigh(self, weight: float) -> None:
        self.weight = weight

    def count(self, *, waiting: int = 0, placed: int = 0) -> None:
        self.waiting += waiting
        self.placed += placed
        self.account.count(placed)

    def use(self, used: float) -> None:
        if used != self.used:
            self.used = used
            self.rank()

    def took(self, seconds: float) -> None:
        """One of its jobs has ended, and was executed for so long."""
        self.mean_s = _mixed(self.mean_s, seconds)

    def join(self, line: Ranked) -> None:
        self._lines[line] = None

    def leave(self, line: Ranked) -> None:
        del self._lines[line]

    def rank(self) -> None:
        for line in self._lines:
            line.rank(self)


class Shares:
    """All owners that have jobs, and those that had some of late. `least_used`: see `Lines.least_used`."""

    def __init__(self, least_used: Callable[[], float | None]) -> None:
        self.mean_s = _FIRST_ESTIMATE_S
        """How long jobs take, of whichever owner."""
        self._least_used = least_used
        self._shares: dict[str | None, Share] = {}
        self._accounts: dict[str | None, Account] = {}
        self._idle: dict[str | None, None] = {}
        self._used_now = 0.0
        self._numbers = 0

    def of(self, owner: str | None, terms: Terms) -> Share:
        """The owner's share, on these terms from now on."""
        self._idle.pop(owner, None)
        share = self._shares.get(owner)
        if share is None:
            account = self._accounts.setdefault(terms.account, Account(terms.account))
            self._numbers += 1
            share = self._shares[owner] = Share(owner, account, self._numbers)
        share.weigh(terms.weight)
        share.account.limit(terms.max_running)
        if not share.waiting:
            # Turns cannot be saved up: an owner without jobs starts level with those who wait.
            self._level(share)
        return share

    def count(self, owns: Callable[[str | None], bool]) -> int:
        """How many jobs wait or are on a server, of owners that `owns` picks."""
        return sum(share.waiting + share.placed for share in self._shares.values() if owns(share.name))

    def by_owner(self) -> Iterator[tuple[str | None, int, int]]:
        """Each owner that is remembered, with how many of its jobs wait and how many are on a server."""
        yield from ((share.name, share.waiting, share.placed) for share in self._shares.values())

    def set_terms(self, terms_of: Callable[[str | None], Terms]) -> None:
        """Sets the terms of all owners. The account of an owner stays."""
        for share in self._shares.values():
            terms = terms_of(share.name)
            share.weigh(terms.weight)
            share.account.limit(terms.max_running)

    def placed(self, share: Share) -> float:
        """One of the owner's jobs goes to a server; returns the estimate that the owner is charged until the job
        ends.
        """
        self._used_now = max(self._used_now, share.used)
        charged = (self.mean_s if share.mean_s is None else share.mean_s) / share.weight
        share.use(share.used + charged)
        self._count(share, 1)
        return charged

    def left(self, share: Share, charged: float, seconds: float) -> None:
        """The job has left the server, and was executed for `seconds`. `charged` is what `placed` gave for it."""
        if seconds > 0:
            share.took(seconds)
            self.mean_s = _mixed(self.mean_s, seconds)
        share.use(share.used - charged + seconds / share.weight)
        self._count(share, -1)

    def perhaps_idle(self, share: Share) -> None:
        """The owner may have no more jobs."""
        if share.has_jobs:
            return
        self._idle[share.name] = None
        if share.used <= self._used_now:
            self._forget(share)
        elif len(self._idle) > _REMEMBERED:
            self._forget(self._shares[next(iter(self._idle))])

    def _count(self, share: Share, placed: int) -> None:
        account = share.account
        was_full = account.is_full
        share.count(placed=placed)
        if account.is_full != was_full:
            if was_full:
                # The time at the limit is no credit, either.
                for held in account.shares:
                    self._level(held)
            account.rank()

    def _level(self, share: Share) -> None:
        least = self._least_used()
        share.use(max(share.used, self._used_now if least is None else least))

    def _forget(self, share: Share) -> None:
        del self._idle[share.name], self._shares[share.name], share.account.shares[share]
        if not share.account.shares:
            del self._accounts[share.account.name]


def _mixed(mean_s: float | None, seconds: float) -> float:
    return seconds if mean_s is None else mean_s + _NEWEST * (seconds - mean_s)
