"""The scheduler's promises, each as a property, and then its targets in numbers."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui.jobs.lines import Lane, Waiting
from comfyui.jobs.scheduler import Place, Scheduler, SchedulerOptions, TakeBack
from comfyui.jobs.shares import Terms
from tests.support.simulated_servers import Simulation

OWNERS = ("ann", "bob", "cid")
# The profile sets the number of examples: 100, and more in `make scheduler`.
unhurried = settings(deadline=None)
some_seconds = st.floats(0.1, 20)
weights = st.sampled_from([0.5, 1.0, 2.0, 5.0])


def lanes(servers: int) -> st.SearchStrategy[Lane]:
    names = [f"gpu-{index}" for index in range(servers)]
    kinds = st.lists(st.sampled_from(["yes", "no", "unknown"]), min_size=servers, max_size=servers)

    def lane(chosen: list[str]) -> Lane:
        by_kind = {kind: frozenset(n for n, k in zip(names, chosen, strict=True) if k == kind) for kind in chosen}
        return Lane(by_kind.get("yes", frozenset()), by_kind.get("no", frozenset()))

    return kinds.map(lane)


def placed(decisions: list[Place | TakeBack]) -> list[tuple[str, str]]:
    return [(decision.prompt_id, decision.server) for decision in decisions if isinstance(decision, Place)]


def one_server(*jobs: Waiting, options: SchedulerOptions | None = None) -> Scheduler:
    """A scheduler with one idle server, and these jobs in line."""
    scheduler = Scheduler(options or SchedulerOptions())
    scheduler.set_server("gpu", up=True)
    for job in jobs:
        scheduler.add(job)
    return scheduler


def run_order(scheduler: Scheduler) -> list[str]:
    """The order in which the server gets the jobs. Each job runs for one second."""
    order: list[str] = []
    for ended in itertools.count():
        while decisions := placed(scheduler.decide(float(ended))):
            for prompt_id, _ in decisions:
                order.append(prompt_id)
                scheduler.accepted(prompt_id)
        if ended == len(order):
            break
        scheduler.left(order[ended], 1.0)
    return order


# Order


@unhurried
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_the_jobs_of_one_owner_run_by_priority_then_front_then_number(jobs: list[tuple[int, bool]]) -> None:
    waiting = [
        Waiting(str(n), n, priority=priority, turn=-n if front else None) for n, (priority, front) in enumerate(jobs, 1)
    ]
    expected = sorted(waiting, key=lambda job: (-job.priority, job.number if job.turn is None else job.turn))
    assert run_order(one_server(*waiting)) == [job.prompt_id for job in expected]


STEPS = st.one_of(
    st.tuples(st.just("comes"), lanes(2), st.sampled_from(OWNERS), st.sampled_from(["a", "b", ""])),
    st.tuples(st.just("is accepted"), st.integers(0, 20)),
    st.tuples(st.just("begins"), st.integers(0, 20)),
    st.tuples(st.just("ends"), st.integers(0, 20), some_seconds),
    st.tuples(st.just("changes"), st.integers(0, 1), st.booleans(), st.integers(0, 2)),
)


@unhurried
@given(st.lists(STEPS, min_size=1, max_size=40), st.booleans())
def test_a_job_placed_at_once_goes_where_a_job_in_line_would_go(steps: list[tuple[Any, ...]], takes_back: bool) -> None:
    """Two schedulers get the same events. One places jobs at once, and both make the same decisions."""
    at_once, in_line = (Scheduler(SchedulerOptions(takes_back=takes_back)) for _ in range(2))
    both = at_once, in_line
    for scheduler, index in itertools.product(both, range(2)):
        scheduler.set_server(f"gpu-{index}", up=True)
    for now, (step, *how) in enumerate(steps):
        if step == "comes":
            lane, owner, loaders = how
            terms = Terms(1.0, owner, 1 if owner == "ann" else None)
            job = Waiting(str(now), now, owner, loaders=frozenset(loaders), lane=lane)
            server = at_once.place_at_once(job, now, terms)
            in_line.add(job, terms)
            if server is None:
                at_once.add(job, terms)
            first = [] if server is None else [Place(job.prompt_id, server)]
            assert first + at_once.decide(now) == in_line.decide(now)
        else:
            for scheduler in both:
                match step:
                    case "is accepted":
                        scheduler.accepted(str(how[0]))
                    case "begins":
                        scheduler.began(str(how[0]))
                    case "ends":
                        scheduler.left(str(how[0]), how[1])
                    case "changes":
                        scheduler.set_server(f"gpu-{how[0]}", up=how[1], others=how[2])
            assert at_once.decide(now) == in_line.decide(now)
        assert at_once.standing() == in_line.standing()


def test_a_job_is_placed_at_once_only_on_a_free_server_without_a_line() -> None:
    scheduler = one_server()
    assert scheduler.place_at_once(Waiting("a", 1), 0.0) == "gpu"
    assert scheduler.place_at_once(Waiting("b", 2), 0.0) is None, "ComfyUI has not accepted the first job yet"
    scheduler.add(Waiting("c", 3))
    scheduler.accepted("a")
    assert scheduler.place_at_once(Waiting("b", 2), 0.0) is None, "another job waits"


def test_a_front_job_goes_before_jobs_of_the_same_owner_only() -> None:
    jobs = [Waiting("a1", 1, "ann"), Waiting("b2", 2, "bob"), Waiting("b3", 3, "bob", turn=-3)]
    assert run_order(one_server(*jobs)) == ["a1", "b3", "b2"]


@unhurried
@given(st.data(), st.integers(1, 3))
def test_no_job_is_placed_where_a_job_of_higher_priority_could_go(data: st.DataObject, servers: int) -> None:
    made = st.tuples(st.integers(0, 2), lanes(servers), st.sampled_from(OWNERS))
    jobs = data.draw(st.lists(made, min_size=1, max_size=20))
    scheduler = Scheduler()
    for index in range(servers):
        scheduler.set_server(f"gpu-{index}", up=True)
    waiting = {}
    for number, (priority, lane, owner) in enumerate(jobs, 1):
        waiting[str(number)] = job = Waiting(str(number), number, owner, priority=priority, lane=lane)
        scheduler.add(job)
    for prompt_id, server in placed(scheduler.decide(0.0)):
        job = waiting.pop(prompt_id)
        higher = [other for other in waiting.values() if other.priority > job.priority]
        all_servers = {f"gpu-{index}" for index in range(servers)}
        assert not [one for one in higher if server not in one.lane.no or one.lane.no == all_servers]


# Jobs that may have killed their server


def test_a_job_that_goes_alone_waits_for_an_idle_server_and_is_not_overtaken_there() -> None:
    scheduler = one_server(Waiting("a", 1))
    assert placed(scheduler.decide(0.0)) == [("a", "gpu")]
    scheduler.accepted("a")
    scheduler.add(Waiting("alone", 2, lane=Lane(alone=True)))
    scheduler.add(Waiting("b", 3))
    assert scheduler.decide(1.0) == [], "the server is cleared for the job that goes alone"
    scheduler.left("a", 1.0)
    assert placed(scheduler.decide(2.0)) == [("alone", "gpu")]
    scheduler.accepted("alone")
    assert placed(scheduler.decide(2.0)) == [("b", "gpu")], "another job may wait behind it"


def test_only_one_server_is_cleared_for_a_job_that_goes_alone() -> None:
    scheduler = one_server(Waiting("a", 1))
    scheduler.set_server("other", up=True)
    scheduler.add(Waiting("b", 2))
    for prompt_id, _ in placed(scheduler.decide(0.0)):
        scheduler.accepted(prompt_id)
    scheduler.add(Waiting("alone", 3, lane=Lane(alone=True, avoid=frozenset({"gpu"}))))
    scheduler.add(Waiting("c", 4))
    scheduler.add(Waiting("d", 5))
    assert placed(scheduler.decide(1.0)) == [("c", "gpu")]
    scheduler.accepted("c")
    scheduler.left("a", 1.0)
    assert placed(scheduler.decide(2.0)) == [("d", "gpu")]
    scheduler.left("b", 1.0)
    assert placed(scheduler.decide(3.0)) == [("alone", "other")]


def test_a_job_that_goes_alone_waits_for_prompts_of_other_clients_to_end() -> None:
    scheduler = one_server(Waiting("alone", 1, lane=Lane(alone=True)))
    scheduler.set_server("gpu", up=True, others=1)
    assert scheduler.decide(0.0) == []
    scheduler.set_server("gpu", up=True)
    assert placed(scheduler.decide(1.0)) == [("alone", "gpu")]


def test_a_job_of_higher_priority_goes_before_a_job_that_goes_alone() -> None:
    scheduler = one_server(Waiting("a", 1))
    scheduler.decide(0.0)
    scheduler.accepted("a")
    scheduler.add(Waiting("alone", 2, lane=Lane(alone=True)))
    scheduler.decide(1.0)
    scheduler.add(Waiting("urgent", 3, priority=1))
    assert placed(scheduler.decide(2.0)) == [("urgent", "gpu")]


# Fairness


@unhurried
@given(st.integers(1, 4), st.lists(st.sampled_from(OWNERS), min_size=2, max_size=60))
def test_owners_of_equal_jobs_differ_by_at_most_one_place(servers: int, submitted: list[str]) -> None:
    simulation = Simulation(servers)
    for owner in submitted:
        simulation.submit(owner)
    simulation.run()
    left = Counter(submitted)
    given_places: Counter[str] = Counter()
    for place in simulation.placed:
        owner = simulation.jobs[place.prompt_id].owner or ""
        given_places[owner] += 1
        left[owner] -= 1
        waiting = [other for other in left if left[other] > 0]
        assert all(given_places[owner] - given_places[other] <= 1 for other in waiting)


@unhurried
@given(st.tuples(weights, weights), some_seconds, some_seconds)
def test_owners_get_run_time_in_proportion_to_their_weights(
    weighted: tuple[float, float], ann_s: float, bob_s: float
) -> None:
    by_name = dict(zip(("ann", "bob"), weighted, strict=True))
    seconds = {"ann": ann_s, "bob": bob_s}
    simulation = Simulation(1, lambda i: seconds[i[:3]], terms=lambda owner: Terms(by_name[owner or ""]))
    while len(simulation.begun) < 200:
        for name in by_name:  # both owners always have a next job
            while simulation.waiting_of(name) < 3:
                simulation.submit(name)
        simulation.step()
    used = {name: simulation.begun_of(name) * seconds[name] / by_name[name] for name in by_name}
    longest = max(seconds[name] / by_name[name] for name in by_name)
    # The job that runs, the job that waits behind it, and the first two jobs, whose run times were unknown.
    assert abs(used["ann"] - used["bob"]) <= 4 * longest


def test_a_lower_weight_gives_no_credit_for_jobs_that_run_at_the_change() -> None:
    scheduler = one_server(Waiting("a1", 1, "ann"))
    assert [place.prompt_id for place in scheduler.decide(0.0) if isinstance(place, Place)] == ["a1"]
    scheduler.left("a1", 100.0)  # the run time that ann's further jobs are expected to have
    scheduler.add(Waiting("a2", 2, "ann"))
    scheduler.decide(100.0)
    for number in range(3, 9):
        scheduler.add(Waiting(f"{'ab'[number % 2]}{number}", number, ("ann", "bob")[number % 2]))
    scheduler.set_terms(lambda owner: Terms(0.01 if owner == "ann" else 1.0))
    scheduler.left("a2", 1.0)
    assert sorted(run_order(scheduler)[:3]) == ["b3", "b5", "b7"]


def test_an_owner_without_jobs_saves_up_no_turns() -> None:
    simulation = Simulation(1)
    for _ in range(50):
        simulation.submit("ann")
    simulation.run(until_s=30)
    for _ in range(20):
        simulation.submit("bob")
    simulation.run()
    after = simulation.begun[32:]
    shared = [simulation.jobs[prompt_id].owner for prompt_id in after[:10]]
    assert 4 <= shared.count("bob") <= 6


def test_ten_jobs_of_a_second_owner_end_before_the_first_owners_30th_begins() -> None:
    simulation = Simulation(4)
    for _ in range(1000):
        simulation.submit("ann")
    simulation.decide()
    second = [simulation.submit("bob") for _ in range(10)]
    simulation.run(until_s=60)
    thirtieth = [prompt_id for prompt_id in simulation.begun if prompt_id.startswith("ann")][29]
    assert max(simulation.ends[prompt_id] for prompt_id in second) <= simulation.starts[thirtieth]


@unhurried
@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from(OWNERS), some_seconds), max_size=40), st.data())
def test_every_job_runs_once(servers: int, jobs: list[tuple[str, float]], data: st.DataObject) -> None:
    seconds: dict[str, float] = {}
    simulation = Simulation(servers, seconds.__getitem__)
    for owner, takes_s in jobs:
        loaders = frozenset(data.draw(st.sets(st.sampled_from(["a.ckpt", "b.ckpt"]), max_size=1)))
        prompt_id = simulation.submit(owner, lane=data.draw(lanes(servers)), loaders=loaders)
        seconds[prompt_id] = takes_s
    simulation.run()
    assert simulation.times_begun() == Counter(dict.fromkeys(simulation.jobs, 1))


@unhurried
@given(st.integers(1, 4), st.floats(0.5, 5))
def test_no_job_starves_while_others_keep_coming(servers: int, takes_s: float) -> None:
    """The other owner submits jobs without end, and their models are loaded on every server."""
    simulation = Simulation(servers, lambda _: takes_s)
    for _ in range(10 * servers):
        simulation.submit("ann", loaders=frozenset({"a.ckpt"}))
    simulation.run(until_s=3 * takes_s)
    mine = simulation.submit("bob", loaders=frozenset({"b.ckpt"}))
    came = simulation.now
    while mine not in simulation.starts:
        for _ in range(2 * servers):
            simulation.submit("ann", loaders=frozenset({"a.ckpt"}))
        simulation.step()
        assert simulation.now - came <= 10 + 4 * takes_s
    assert simulation.starts[mine] - came <= 10 + 4 * takes_s


# Limits


@unhurried
@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.sampled_from(["ann/x", "ann/y", "bob"]), max_size=40))
def test_no_account_ever_has_more_jobs_on_servers_than_its_limit(
    servers: int, limit: int, submitted: list[str]
) -> None:
    def terms(owner: str | None) -> Terms:
        account = (owner or "").partition("/")[0]
        return Terms(1.0, account, limit if account == "ann" else None)

    simulation = Simulation(servers, terms=terms)
    for owner in submitted:
        simulation.submit(owner)
    simulation.run()
    assert len(simulation.ends) == len(submitted)
    changes = [(at, 1) for i, at in simulation.starts.items() if i.startswith("ann")]
    changes += [(at, -1) for i, at in simulation.ends.items() if i.startswith("ann")]
    assert all(total <= limit for total in itertools.accumulate(change for _, change in sorted(changes)))


def test_an_account_at_its_limit_delays_no_other_account() -> None:
    scheduler = one_server()
    scheduler.set_server("other", up=True)
    for number in range(1, 4):
        scheduler.add(Waiting(f"a{number}", number, "ann"), Terms(1.0, "ann", 1))
    scheduler.add(Waiting("b", 4, "bob"))
    assert placed(scheduler.decide(0.0)) == [("a1", "gpu"), ("b", "other")]
    scheduler.left("a1", 1.0)
    scheduler.accepted("b")
    assert placed(scheduler.decide(1.0)) == [("a2", "gpu")]


# Servers


def test_a_server_gets_a_second_prompt_when_it_has_accepted_the_first_and_no_third() -> None:
    scheduler = one_server(*(Waiting(str(number), number) for number in range(1, 5)))
    assert placed(scheduler.decide(0.0)) == [("1", "gpu")]
    assert scheduler.decide(4.0) == []
    assert scheduler.next_look(4.0) == 5.0
    scheduler.accepted("1")
    assert placed(scheduler.decide(4.0)) == [("2", "gpu")]
    scheduler.accepted("2")
    assert scheduler.decide(100.0) == []


def test_a_slow_submission_delays_no_other_prompt() -> None:
    scheduler = one_server(Waiting("1", 1), Waiting("2", 2))
    assert placed(scheduler.decide(0.0)) == [("1", "gpu")]
    assert placed(scheduler.decide(5.0)) == [("2", "gpu")]


@pytest.mark.parametrize(("others", "free"), [(0, 2), (1, 1), (2, 0), (7, 0)])
def test_prompts_of_other_clients_take_places(others: int, free: int) -> None:
    scheduler = one_server(Waiting("1", 1), Waiting("2", 2), Waiting("3", 3))
    scheduler.set_server("gpu", up=True, others=others)
    got = placed(scheduler.decide(0.0)) + placed(scheduler.decide(10.0)) + placed(scheduler.decide(20.0))
    assert [prompt_id for prompt_id, _ in got] == ["1", "2"][:free]


@unhurried
@given(st.data(), st.integers(1, 4), st.integers(1, 12))
def test_no_job_waits_for_a_free_place_or_behind_a_prompt_beside_an_idle_server(
    data: st.DataObject, servers: int, jobs: int
) -> None:
    scheduler = Scheduler()
    names = [f"gpu-{index}" for index in range(servers)]
    up = {name: data.draw(st.booleans()) for name in names}
    load = {name: data.draw(st.integers(0, 2)) for name in names}
    for name in names:
        scheduler.set_server(name, up=up[name], others=load[name])
    waiting = {}
    for number in range(1, jobs + 1):
        waiting[str(number)] = Waiting(str(number), number, lane=data.draw(lanes(servers)))
        scheduler.add(waiting[str(number)])
    while decisions := scheduler.decide(0.0):
        for prompt_id, server in placed(decisions):
            lane = waiting.pop(prompt_id).lane
            everywhere = lane.no == set(names)
            assert up[server]
            assert load[server] < 2
            assert server not in lane.no or everywhere
            idle = [name for name in names if up[name] and not load[name]]
            if load[server]:
                assert not [name for name in idle if name not in lane.no or everywhere]
            elif server not in lane.yes:
                assert not [name for name in idle if name in lane.yes]
            load[server] += 1
            scheduler.accepted(prompt_id)
    for job in waiting.values():
        everywhere = job.lane.no == set(names)
        able = [name for name in names if up[name] and load[name] < 2 and (name not in job.lane.no or everywhere)]
        assert not able


def test_a_job_waits_for_the_only_server_that_can_run_it() -> None:
    scheduler = one_server(Waiting("1", 1, lane=Lane(yes=frozenset({"away"}), no=frozenset({"gpu"}))))
    scheduler.set_server("away", up=False)
    assert scheduler.decide(0.0) == []
    scheduler.set_server("away", up=True)
    assert placed(scheduler.decide(0.0)) == [("1", "away")]


def test_a_job_that_no_server_can_run_goes_to_the_least_loaded_server() -> None:
    nowhere = Lane(no=frozenset({"gpu", "other"}))
    scheduler = one_server(Waiting("1", 1, lane=nowhere))
    scheduler.set_server("gpu", up=True, others=1)
    scheduler.set_server("other", up=True)
    assert placed(scheduler.decide(0.0)) == [("1", "other")]


def test_a_job_returns_to_the_server_where_it_failed_only_if_no_other_is_up() -> None:
    scheduler = one_server(Waiting("1", 1, lane=Lane(avoid=frozenset({"gpu"}))))
    scheduler.set_server("other", up=True, others=2)
    assert scheduler.decide(0.0) == []
    scheduler.set_server("other", up=False)
    assert placed(scheduler.decide(0.0)) == [("1", "gpu")]


def test_a_paused_scheduler_places_nothing() -> None:
    scheduler = one_server(Waiting("1", 1))
    scheduler.pause(True)
    assert scheduler.decide(0.0) == []
    scheduler.pause(False)
    assert placed(scheduler.decide(0.0)) == [("1", "gpu")]


# Affinity

A, B = frozenset({"a.ckpt"}), frozenset({"b.ckpt"})


def _next(scheduler: Scheduler, now: float) -> str:
    """The next job that the server gets; it ends at once."""
    ((prompt_id, _),) = placed(scheduler.decide(now))
    scheduler.left(prompt_id, 1.0)
    return prompt_id


def test_a_server_prefers_jobs_with_loaded_models_for_ten_seconds_at_most() -> None:
    scheduler = one_server(Waiting("a1", 1, loaders=A))
    assert _next(scheduler, 0.0) == "a1"
    scheduler.add(Waiting("b2", 2, loaders=B))
    for number in range(3, 9):
        scheduler.add(Waiting(f"a{number}", number, loaders=A))
    # The ten seconds count from the first time that b2 is passed over, at 100.
    got = [_next(scheduler, now) for now in (100.0, 105.0, 109.9, 110.0, 111.0)]
    # Then model b is loaded, and no other job needs it.
    assert got == ["a3", "a4", "a5", "b2", "a6"]


def test_loaded_models_never_pass_over_a_job_of_higher_priority() -> None:
    scheduler = one_server(Waiting("a1", 1, loaders=A))
    assert _next(scheduler, 0.0) == "a1"
    scheduler.add(Waiting("a2", 2, loaders=A))
    scheduler.add(Waiting("b3", 3, loaders=B, priority=1))
    assert [_next(scheduler, 1.0), _next(scheduler, 2.0)] == ["b3", "a2"]


def test_a_job_prefers_an_idle_server_that_has_its_models_loaded() -> None:
    scheduler = one_server(Waiting("a1", 1, loaders=A))
    assert _next(scheduler, 0.0) == "a1"
    scheduler.set_server("gpu", up=True, others=1)
    scheduler.set_server("other", up=True)
    scheduler.add(Waiting("b2", 2, loaders=B))
    assert placed(scheduler.decide(1.0)) == [("b2", "other")]
    scheduler.left("b2", 1.0)
    scheduler.set_server("gpu", up=True)
    scheduler.add(Waiting("b3", 3, loaders=B))
    assert placed(scheduler.decide(2.0)) == [("b3", "other")]


# Taking back


def two_on_one() -> Scheduler:
    """One server runs a job while another job waits behind it; a second server is down."""
    scheduler = one_server(Waiting("1", 1), Waiting("2", 2))
    scheduler.set_server("other", up=False)
    for prompt_id in ("1", "2"):
        assert placed(scheduler.decide(0.0)) == [(prompt_id, "gpu")]
        scheduler.accepted(prompt_id)
    scheduler.began("1")
    return scheduler


def test_a_job_behind_a_prompt_is_taken_back_and_goes_to_an_idle_server() -> None:
    scheduler = two_on_one()
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == [TakeBack("2", "gpu", "other")]
    assert scheduler.decide(1.0) == []
    assert scheduler.taken_back("2", 1.1) == [Place("2", "other")]
    assert scheduler.server_of("2") == "other"
    assert scheduler.decide(2.0) == []


def test_a_prompt_that_begins_while_it_is_taken_back_stays_and_frees_the_kept_place() -> None:
    scheduler = two_on_one()
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == [TakeBack("2", "gpu", "other")]
    scheduler.add(Waiting("3", 3))
    assert placed(scheduler.decide(1.0)) == []  # "other" is kept for job 2, and "gpu" is full
    scheduler.stays("2")
    assert placed(scheduler.decide(1.0)) == [("3", "other")]
    scheduler.accepted("3")
    assert scheduler.decide(2.0) == []


def test_a_job_to_take_back_goes_before_waiting_jobs_of_the_same_priority() -> None:
    scheduler = two_on_one()
    scheduler.add(Waiting("3", 3))
    scheduler.add(Waiting("4", 4, priority=1))
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == [Place("4", "other")]
    scheduler.left("4")
    assert scheduler.decide(2.0) == [TakeBack("2", "gpu", "other")]


def test_running_unaccepted_and_unsuitable_jobs_are_not_taken_back() -> None:
    scheduler = two_on_one()
    scheduler.began("2")
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == []
    unable = two_on_one()
    unable.set_lane("2", Lane(no=frozenset({"other"})))
    unable.set_server("other", up=True)
    assert unable.decide(1.0) == []
    on_its_way = one_server(Waiting("1", 1), Waiting("2", 2))
    on_its_way.set_server("other", up=False)
    on_its_way.decide(0.0)
    on_its_way.decide(5.0)
    on_its_way.set_server("other", up=True)
    assert on_its_way.decide(6.0) == []


def test_a_job_is_taken_back_once_an_idle_server_is_known_to_be_able_to_run_it() -> None:
    scheduler = Scheduler()
    for name in ("gpu", "other"):
        scheduler.set_server(name, up=name == "gpu")
    for number in (1, 2):
        scheduler.add(Waiting(str(number), number, lane=Lane(yes=frozenset({"gpu"})), shape=number))
        (place,) = placed(scheduler.decide(0.0))
        scheduler.accepted(place[0])
    scheduler.began("1")
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == [], "it is unknown whether the other server can run it"
    assert list(scheduler.shapes()) == [("2", 2, Lane(yes=frozenset({"gpu"})))]
    scheduler.set_lane("2", Lane(yes=frozenset({"gpu", "other"})))
    assert scheduler.decide(1.0) == [TakeBack("2", "gpu", "other")]


def test_a_job_taken_back_for_a_server_that_went_down_waits_in_its_old_place() -> None:
    scheduler = two_on_one()
    scheduler.set_server("other", up=True)
    scheduler.decide(1.0)
    scheduler.set_server("other", up=False)
    scheduler.add(Waiting("3", 3))
    assert scheduler.taken_back("2", 1.1) == []
    assert placed(scheduler.decide(2.0)) == [("2", "gpu")]


# Jobs that servers had before the gateway was started


def found_on_one(*running: str) -> Scheduler:
    """A server has jobs 1 and 2 from before a restart; those in `running` may run. A second server is idle."""
    scheduler = one_server()
    scheduler.set_server("other", up=True)
    for number in (1, 2):
        scheduler.occupy(Waiting(str(number), number), "gpu", 0.0)
    for prompt_id in ("1", "2"):
        if prompt_id not in running:
            scheduler.found_waiting(prompt_id, int(prompt_id), A, "shape", Lane())
    return scheduler


def test_a_job_that_is_found_waiting_is_taken_back_for_an_idle_server() -> None:
    assert found_on_one("1").decide(1.0) == [TakeBack("2", "gpu", "other")]
    assert found_on_one("2").decide(1.0) == [TakeBack("1", "gpu", "other")], "the job that was placed first waits"


def test_a_job_that_may_be_running_or_next_is_not_taken_back() -> None:
    assert found_on_one("1", "2").decide(1.0) == [], "each of the two may be the job that runs"
    behind_another = one_server()
    behind_another.set_server("other", up=True)
    behind_another.occupy(Waiting("1", 1), "gpu", 0.0)
    behind_another.found_waiting("1", 1, A, "shape", Lane())
    assert behind_another.decide(1.0) == [], "it is the next job to run there"
    behind_another.set_server("gpu", up=True, others=1)
    assert behind_another.decide(1.0) == [TakeBack("1", "gpu", "other")]


@pytest.mark.parametrize("occupied", list(itertools.permutations("123")))
@pytest.mark.parametrize("found", list(itertools.permutations("123")))
def test_the_first_found_job_in_comfyuis_queue_counts_as_the_next_to_run(
    occupied: tuple[str, ...], found: tuple[str, ...]
) -> None:
    """The order in which the gateway finds the jobs does not matter; a job behind the first is taken back."""
    scheduler = Scheduler()
    scheduler.set_server("gpu", up=True, places=3)
    for prompt_id in occupied:
        scheduler.occupy(Waiting(prompt_id, int(prompt_id)), "gpu", 0.0)
    lanes = {"1": Lane(), "2": Lane(no=frozenset({"other"})), "3": Lane()}
    for prompt_id in found:
        # ComfyUI gives prompts at the front decreasing numbers: it runs 3 first, then 2, then 1.
        scheduler.found_waiting(prompt_id, -int(prompt_id), A, "shape", lanes[prompt_id])
    scheduler.set_server("other", up=True)
    assert scheduler.decide(1.0) == [TakeBack("1", "gpu", "other")]


def test_a_job_that_is_found_waiting_may_get_a_new_lane() -> None:
    scheduler = found_on_one("1")
    assert list(scheduler.shapes()) == [("2", "shape", Lane())]
    scheduler.set_lane("2", Lane(no=frozenset({"other"})))
    assert scheduler.decide(1.0) == []


def test_an_accepted_job_does_not_move_when_all_servers_seem_unable_to_run_it() -> None:
    """The node definitions of the first server are older than the file that the job needs."""
    scheduler = found_on_one("1")
    scheduler.set_lane("2", Lane(no=frozenset({"gpu", "other"})))
    assert scheduler.decide(1.0) == []


def test_a_late_finding_does_not_change_a_job_that_has_left_its_server() -> None:
    scheduler = found_on_one("1", "2")
    scheduler.left("2")
    scheduler.found_waiting("2", 2, A, "shape", Lane())
    assert not scheduler.knows("2")
    scheduler.add(Waiting("2", 2, shape="own"))
    scheduler.found_waiting("2", 2, A, "shape", Lane())
    assert [shape for _, shape, _ in scheduler.shapes()] == ["own"]


# Positions and figures


@unhurried
@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_the_positions_of_one_owners_jobs_are_the_order_in_which_they_run(priorities: list[int]) -> None:
    scheduler = one_server(*(Waiting(str(n), n, priority=p) for n, p in enumerate(priorities, 1)))
    positions = {str(n): scheduler.ahead_of(str(n)) for n in range(1, len(priorities) + 1)}
    assert [positions[prompt_id] for prompt_id in run_order(scheduler)] == list(range(len(priorities)))


def test_the_position_counts_turns_and_not_submissions() -> None:
    scheduler = one_server(*(Waiting(f"a{n}", n, "ann") for n in range(1, 101)), Waiting("b", 101, "bob"))
    assert scheduler.ahead_of("b") in {0, 1}
    assert scheduler.ahead_of("a100") == 100
    assert scheduler.ahead_of("not known") is None


def _ten_thousand(owners: int, kinds: int) -> Scheduler:
    scheduler = Scheduler()
    names = [f"gpu-{index}" for index in range(8)]
    for name in names:
        scheduler.set_server(name, up=True)
    lane = [Lane(yes=frozenset(names[: 1 + kind % 8]), no=frozenset(names[1 + kind % 8 :])) for kind in range(kinds)]
    files = [frozenset({f"model-{kind}.safetensors"}) for kind in range(kinds)]
    for number in range(10_000):
        kind = number % kinds
        scheduler.add(
            Waiting(
                f"00000000-0000-4000-8000-{number:012}",
                number,
                f"owner {number % owners}",
                priority=number % 3,
                loaders=files[kind],
                lane=lane[kind],
            )
        )
    return scheduler


@pytest.mark.parametrize(("owners", "kinds"), [(1, 1), (200, 20), (10_000, 20), (200, 1000)])
def test_ten_thousand_jobs_wait_and_a_decision_takes_less_than_a_millisecond(owners: int, kinds: int) -> None:
    scheduler = _ten_thousand(owners, kinds)
    took = []
    running: list[str] = []
    for turn in range(300):
        began = time.thread_time()
        decisions = scheduler.decide(float(turn))
        took.append((time.thread_time() - began) / max(1, len(decisions)))
        for prompt_id, _ in placed(decisions):
            scheduler.accepted(prompt_id)
            running.append(prompt_id)
        began = time.thread_time()
        scheduler.left(running.pop(0), 1.0)
        took.append(time.thread_time() - began)
    assert sorted(took)[len(took) // 2] < 0.001


def test_a_waiting_job_takes_less_than_a_kilobyte() -> None:
    tracemalloc.start()
    try:
        scheduler = _ten_thousand(200, 20)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scheduler.waiting == 10_000
    assert size < 10_000 * 1000


def test_owners_without_jobs_are_forgotten() -> None:
    tracemalloc.start()
    try:
        scheduler = one_server()
        sizes = []
        for number in range(20_000):
            scheduler.add(Waiting(str(number), number, f"owner {number}"))
            assert placed(scheduler.decide(float(number)))
            scheduler.left(str(number), 1.0)
            if number in {9_999, 19_999}:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] < sizes[0] * 1.1 + 10_000


@unhurried
@given(
    jobs=st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(-1, 1), st.booleans()), max_size=30),
    weight=weights,
)
def test_jobs_are_listed_in_the_order_in_which_they_run(jobs: list[tuple[str, int, bool]], weight: float) -> None:
    scheduler = one_server()
    for number, (owner, priority, front) in enumerate(jobs, 1):
        job = Waiting(f"{number}", number, owner, priority=priority, turn=-number if front else None)
        scheduler.add(job, Terms(weight if owner == "ann" else 1.0))
    listed = [standing.prompt_id for standing in scheduler.standing()]
    assert [standing.owner for standing in scheduler.standing()] == [jobs[int(name) - 1][0] for name in listed]
    assert scheduler.shares.count(lambda owner: owner == "ann") == sum(owner == "ann" for owner, _, _ in jobs)
    order = run_order(scheduler)
    # Each job takes one second, which the scheduler also assumes for owners without earlier jobs.
    assert listed == order


def test_jobs_on_servers_are_listed_before_waiting_jobs() -> None:
    scheduler = one_server(*(Waiting(f"{number}", number, "ann") for number in range(1, 5)))
    assert [place.prompt_id for place in scheduler.decide(0.0) if isinstance(place, Place)] == ["1"]
    scheduler.accepted("1")
    scheduler.decide(0.0)
    listed = scheduler.standing()
    assert [(one.prompt_id, one.server, one.accepted) for one in listed] == [
        ("1", "gpu", True),
        ("2", "gpu", False),
        ("3", None, False),
        ("4", None, False),
    ]


def test_listing_10_000_jobs_takes_less_than_a_second() -> None:
    scheduler = one_server(*(Waiting(f"{number}", number, f"owner {number % 200}") for number in range(10_000)))
    began = time.thread_time()
    assert len(scheduler.standing()) == 10_000
    assert time.thread_time() - began < 1.0


# A platform: a server that stands for many


def test_a_platform_gets_the_jobs_for_which_no_suitable_server_is_idle() -> None:
    scheduler = Scheduler()
    for name, many in (("runpod", True), ("gpu-1", False), ("gpu-2", False)):
        scheduler.set_server(name, up=True, places=None if many else 2, many=many)
    found = []
    for number in range(1, 6):
        # Nothing is known of the workflows that a platform can run.
        lane = Lane(yes=frozenset({"gpu-1", "gpu-2"})) if number % 2 else Lane()
        scheduler.add(Waiting(str(number), number, lane=lane))
        for prompt_id, server in placed(scheduler.decide(0.0)):
            found.append(server)
            scheduler.accepted(prompt_id)
    assert found == ["gpu-1", "gpu-2", "runpod", "runpod", "runpod"]


def test_jobs_that_wait_on_a_server_are_not_taken_back_for_a_platform() -> None:
    scheduler = Scheduler()
    scheduler.set_server("gpu", up=True)
    scheduler.set_server("runpod", up=False, places=None, many=True)
    for number in (1, 2):
        scheduler.add(Waiting(str(number), number))
        [(prompt_id, server)] = placed(scheduler.decide(0.0))
        assert server == "gpu"
        scheduler.accepted(prompt_id)
    scheduler.set_server("runpod", up=True, places=None, many=True)
    assert scheduler.decide(1.0) == []


def test_a_platform_is_sent_one_job_at_a_time_and_has_any_number_of_them() -> None:
    scheduler = Scheduler()
    scheduler.set_server("runpod", up=True, places=None, many=True)
    for number in range(1, 4):
        scheduler.add(Waiting(str(number), number))
    for number in range(1, 4):
        assert placed(scheduler.decide(0.0)) == [(str(number), "runpod")]
        scheduler.accepted(str(number))
