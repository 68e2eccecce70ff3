"""Kept requests of the first waiting jobs."""

from __future__ import annotations

from comfyui.jobs.journal.first_record import first_record
from comfyui.jobs.kept_requests import KeptRequests
from comfyui.models import PromptRequest
from tests.support.journals import new_job, prompt_id


def keep_job(kept: KeptRequests, number: int, size: int = 100) -> None:
    request = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}}).of_size(size)
    kept.keep(first_record(new_job(number), number), request)


def test_a_kept_request_can_be_taken_once() -> None:
    kept = KeptRequests()
    keep_job(kept, 1)
    found = kept.take(prompt_id(1))
    assert found is not None
    assert (found[0].prompt_id, found[0].number, found[1].size) == (prompt_id(1), 1, 100)
    assert kept.take(prompt_id(1)) is None


def test_kept_requests_are_bounded_in_number_and_in_bytes() -> None:
    kept = KeptRequests(most=3, most_bytes=1000)
    for number, size in ((1, 100), (2, 901), (3, 900), (4, 0), (5, 0)):
        keep_job(kept, number, size)
    assert [kept.take(prompt_id(number)) is not None for number in range(1, 6)] == [True, False, True, True, False]
    keep_job(kept, 6, 1000)
    assert kept.take(prompt_id(6)) is not None
