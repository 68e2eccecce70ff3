"""Scripts about ``/api/jobs``, which ComfyUI has since 0.38."""

from __future__ import annotations

import uuid

from tests.contract.same.queues import TOLD_ALIKE
from tests.support.same_answers import Caller, Instead
from tests.support.target import node

_SHOWN = Instead(f"{TOLD_ALIKE.why}, so it is listed as a job, too", 200, '"status": "cancelled"')
_NOWHERE = Instead("a `user` gets 404 for a path that ComfyUI does not have", 404)


async def _some_of_each(who: Caller) -> dict[str, str]:
    """The ids of six jobs by name: one succeeded, one failed, one was stopped, one runs and two wait."""
    made = {}
    extra_data = {"extra_pnginfo": {"workflow": {"id": "mine"}}}
    made["succeeded"] = await who.submit("succeeded", who.pinned(), extra_data=extra_data)
    await who.ended(made["succeeded"])
    failing = who.pinned()
    failing["2"] = node("SimulatedError", exception_type="ValueError", message="it broke")
    made["failed"] = await who.submit("failed", failing)
    await who.ended(made["failed"])
    made["stopped"] = await who.submit("stopped", who.long())
    await who.runs(made["stopped"])
    await who.post("/interrupt", {"prompt_id": made["stopped"]})
    await who.ended(made["stopped"])
    made["running"] = await who.submit("running", who.long(), extra_data=extra_data)
    await who.runs(made["running"])
    for name in ("waiting 0", "waiting 1"):
        made[name] = await who.submit(name, who.pinned())
        await who.waits(made[name])
    return made


async def no_jobs(who: Caller) -> None:
    await who.get("/api/jobs")
    for job_id in (str(uuid.uuid4()), "odd"):
        await who.get(f"/api/jobs/{job_id}")
    await who.ask("HEAD", "/api/jobs")


async def lists_of_jobs(who: Caller) -> None:
    await _some_of_each(who)
    for query in (
        "",
        "?sort_order=asc",
        "?sort_by=created_at&sort_order=DESC",
        "?status=pending",
        "?status=in_progress",
        "?status=COMPLETED",
        "?status=failed",
        "?status=cancelled",
        "?status=pending,%20in_progress&sort_order=asc",
        "?status=,",
        "?status=",
        "?limit=2",
        "?limit=2&offset=1",
        "?limit=99&offset=5",
        "?offset=99",
        "?offset=-5&limit=1",
        "?status=completed,failed,cancelled&limit=1&offset=1",
        "?workflow_id=mine",
        "?workflow_id=others",
        "?workflow_id=",
        "?status=completed&sort_by=execution_duration",
        "?status=pending,in_progress&sort_by=execution_duration&sort_order=asc",
    ):
        await who.get(f"/api/jobs{query}")


async def one_job(who: Caller) -> None:
    made = await _some_of_each(who)
    for job_id in made.values():
        await who.get(f"/api/jobs/{job_id}")


async def invalid_queries(who: Caller) -> None:
    for query in (
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "offset=x",
        "offset=",
        "status=done",
        "status=done,completed,odd",
        "sort_by=name",
        "sort_by=",
        "sort_order=up",
        "sort_order=",
    ):
        await who.get(f"/api/jobs?{query}")


async def cancel_one_job(who: Caller) -> None:
    made = await _some_of_each(who)
    for name in ("waiting 0", "waiting 0", "running"):
        await who.post(f"/api/jobs/{made[name]}/cancel")
    await who.ended(made["running"], made["waiting 1"])
    for name in ("running", "succeeded", "failed"):
        await who.post(f"/api/jobs/{made[name]}/cancel")
    for job_id in (str(uuid.uuid4()), "odd"):
        await who.post(f"/api/jobs/{job_id}/cancel", b"odd")
    await who.get("/history", gateway=TOLD_ALIKE)
    await who.get("/api/jobs?sort_order=asc", gateway=_SHOWN)
    await who.get(f"/api/jobs/{made['waiting 0']}", gateway=_SHOWN)
    await who.get("/api/jobs?status=completed,failed")


async def cancel_several_jobs(who: Caller) -> None:
    made = await _some_of_each(who)
    for body in (
        b"",
        b"{",
        b"[]",
        b"7",
        {},
        {"job_ids": None},
        {"job_ids": "x"},
        {"job_ids": [7, "odd", made["running"]]},
    ):
        await who.post("/api/jobs/cancel", body)
    await who.get("/queue")
    await who.post("/api/jobs/cancel", {"job_ids": []})
    await who.post("/api/jobs/cancel", {"job_ids": [made["succeeded"], str(uuid.uuid4())]})
    await who.post("/api/jobs/cancel", {"job_ids": [made["running"], made["waiting 1"], str(uuid.uuid4())]})
    await who.ended(made["running"], made["waiting 0"])
    await who.get("/queue")
    await who.get("/api/jobs?sort_order=asc", gateway=_SHOWN)
    await who.get("/api/jobs?status=completed,failed")


async def jobs_deleted_from_the_history(who: Caller) -> None:
    one = await who.submit("one", who.quick())
    two = await who.submit("two", who.quick())
    await who.ended(one, two)
    await who.post("/history", {"delete": [one]})
    await who.get("/api/jobs")
    await who.get(f"/api/jobs/{one}")
    await who.get(f"/api/jobs/{two}")
    await who.post("/history", {"clear": True})
    await who.get("/api/jobs")


async def paths_without_the_api_prefix(who: Caller) -> None:
    """The job routes exist only below ``/api``."""
    for path in ("/jobs", f"/jobs/{uuid.uuid4()}"):
        await who.get(path)
    await who.post(f"/jobs/{uuid.uuid4()}/cancel", user=_NOWHERE)


CASES = (
    no_jobs,
    lists_of_jobs,
    one_job,
    invalid_queries,
    cancel_one_job,
    cancel_several_jobs,
    jobs_deleted_from_the_history,
    paths_without_the_api_prefix,
)
