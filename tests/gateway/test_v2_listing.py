"""Comfy API v2: the list of jobs, by pages and labels."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from comfy_low.models import Job as JobModel

from tests.support.running import RunningGateway, invert_workflow, sleep_workflow
from tests.support.v2 import JOBS, ask, code_of, comfy, submit, until_ended


async def test_the_sdk_lists_each_job_once_and_the_newest_first(gateway: RunningGateway) -> None:
    jobs = [await submit(gateway, invert_workflow(tag), metadata={"tag": str(tag)}) for tag in range(7)]
    async with comfy(gateway.url) as client:
        listed = [summary async for summary in client.list_jobs(limit=2)]
    assert [summary.id for summary in listed] == [job["id"] for job in reversed(jobs)]
    assert [summary.metadata for summary in listed] == [{"tag": str(tag)} for tag in range(6, -1, -1)]
    assert all(summary.create_time is not None and summary.update_time is not None for summary in listed)


async def test_the_list_has_only_jobs_that_match_all_labels(gateway: RunningGateway) -> None:
    both = await submit(gateway, invert_workflow(), metadata={"a": "1", "b": "ü /?&=", "c": ""})
    await submit(gateway, invert_workflow(), metadata={"a": "1", "b": "3"})
    await submit(gateway, invert_workflow(), metadata="a text, by which nothing is found")
    async with comfy(gateway.url) as client:
        found = [summary.id async for summary in client.list_jobs(metadata={"a": "1", "b": "ü /?&=", "c": ""})]
        assert found == [both["id"]]
        assert [summary async for summary in client.list_jobs(metadata={"a": "2"})] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_request"),
        ("limit=101", "invalid_request"),
        ("limit=", "invalid_request"),
        ("limit=1.5", "invalid_request"),
        ("status=lost", "invalid_request"),
        ("cursor=abc", "invalid_cursor"),
        ("metadata[a]=1&metadata[b]=1&metadata[c]=1&metadata[d]=1", "invalid_metadata_filter"),
        ("metadata[a]=1&metadata[a]=1", "invalid_metadata_filter"),
        ("metadata[a%20b]=1", "invalid_metadata_filter"),
        ("metadata[]=1", "invalid_metadata_filter"),
        ("metadata[a]=%01", "invalid_metadata_filter"),
    ],
)
async def test_a_query_that_breaks_the_contract_is_refused(gateway: RunningGateway, query: str, code: str) -> None:
    status, body = await ask(gateway, f"{JOBS}?{query}")
    assert (status, code_of(body)) == (400, code)


async def test_a_cursor_is_valid_only_for_its_own_list(gateway: RunningGateway) -> None:
    for tag in range(3):
        await submit(gateway, invert_workflow(tag), metadata={"a": "1"})
    _, page = await ask(gateway, f"{JOBS}?limit=1&metadata[a]=1")
    status, body = await ask(gateway, f"{JOBS}?limit=1&cursor={page['next_cursor']}")
    assert (status, code_of(body)) == (400, "invalid_cursor")
    _, last = await ask(gateway, f"{JOBS}?limit=2&metadata[a]=1&cursor={page['next_cursor']}")
    assert len(last["jobs"]) == 2
    assert "next_cursor" not in last


async def test_each_listed_job_is_complete_and_current(gateway: RunningGateway) -> None:
    done = await until_ended(gateway, await submit(gateway, invert_workflow(1)))
    runs = await submit(gateway, sleep_workflow(600))
    _, page = await ask(gateway, JOBS)
    assert page["truncated"] is False
    for item in page["jobs"]:
        JobModel.model_validate(item)
        assert datetime.fromisoformat(item["create_time"]).tzinfo is not None
        assert datetime.fromisoformat(item["update_time"]) >= datetime.fromisoformat(item["create_time"])
    listed = {item["id"]: item for item in page["jobs"]}
    assert listed[done["id"]]["outputs"] == done["outputs"]
    assert listed[runs["id"]]["outputs"] == []
    _, ended = await ask(gateway, f"{JOBS}?status=succeeded,failed")
    assert [item["id"] for item in ended["jobs"]] == [done["id"]]


async def test_a_job_is_removed_when_it_expires(gateway: RunningGateway) -> None:
    """JOBS_KEEP_DAYS decides `expires_at`, and the job is removed then."""
    job = await until_ended(gateway, await submit(gateway, invert_workflow(1), metadata={"a": "1"}))
    expires = datetime.fromisoformat(job["expires_at"])
    assert expires - datetime.fromisoformat(job["completed_at"]) == timedelta(days=7)
    journal, keep_days = gateway.handler.journal, gateway.settings.jobs_keep_days
    assert await journal.prune(expires.timestamp() - 1, keep_days=keep_days, keep=None) == 0
    assert await journal.prune(expires.timestamp() + 1, keep_days=keep_days, keep=None) == 1
    status, body = await ask(gateway, f"{JOBS}/{job['id']}")
    assert (status, code_of(body)) == (404, "not_found")
    assert (await ask(gateway, JOBS))[1]["jobs"] == []


async def test_unknown_query_parameters_are_ignored(gateway: RunningGateway) -> None:
    assert (await ask(gateway, f"{JOBS}?newer=1"))[0] == 200
