"""A check of ours for schemathesis; `tests/contract/test_openapi_clients.py` passes this module to it."""

from __future__ import annotations

from schemathesis import Case, CheckContext, Response, check


@check
def no_fault_of_the_gateway(_context: CheckContext, response: Response, case: Case) -> None:
    """A status of 500 or more is a timeout that the data asked for, or ComfyUI's own answer."""
    if response.status_code < 500:
        return
    if response.headers["content-type"][0] == "application/json":
        assert response.json()["type"] == "timeout", response.text
    else:
        assert case.path in {"/prompt", "/api/prompt"}, response.text
