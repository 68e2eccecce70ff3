"""A LittleHorse workflow with the task of comfyui-gateway's worker: retries, a timeout, exponential back-off.

    python examples/littlehorse_wfspec.py                         registers the WfSpec `render`
    python examples/littlehorse_wfspec.py examples/invert.json    registers it and runs it with this ComfyUI workflow

It runs in the worker's environment (`requirements/littlehorse.txt`) and finds the server by LHC_API_HOST, LHC_API_PORT.
Start the worker first, because it registers the task that the WfSpec names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from littlehorse import create_workflow_spec, to_variable_value
from littlehorse.config import LHConfig
from littlehorse.model import ExponentialBackoffRetryPolicy, RunWfRequest
from littlehorse.workflow import Workflow, WorkflowThread

TASK = "execute-comfyui-workflow"
# Longer than the worker's COMFYUI_HISTORY_TIMEOUT_SEC, so that the worker ends the render before LittleHorse does.
TIMEOUT_S = 660


def render(thread: WorkflowThread) -> None:
    workflow = thread.declare_json_obj("workflow")
    outputs = thread.declare_json_obj("outputs")
    # LittleHorse retries temporary failures: ComfyUI unreachable, restarted or too slow. A retry attaches to a render
    # that still runs.
    task = thread.execute(
        TASK,
        workflow,
        timeout_seconds=TIMEOUT_S,
        retries=3,
        exponential_backoff=ExponentialBackoffRetryPolicy(base_interval_ms=2000, multiplier=2.0, max_delay_ms=60_000),
    )
    # These failures are not retried, because the same workflow would fail again. Each has its own handler.
    thread.handle_exception(task, tell_the_author, "invalid-workflow")
    thread.handle_exception(task, tell_the_operator, "missing-model")
    outputs.assign(task)


def tell_the_author(thread: WorkflowThread) -> None:
    thread.fail("invalid-workflow", "ComfyUI refused the workflow; the task's log names the nodes")


def tell_the_operator(thread: WorkflowThread) -> None:
    thread.fail("missing-model", "a model that the workflow names is not on the GPU machine")


def main() -> int:
    config = LHConfig()
    create_workflow_spec(Workflow("render", render), config)
    if len(sys.argv) > 1:
        workflow = json.loads(Path(sys.argv[1]).read_text())
        variables = {"workflow": to_variable_value(workflow)}
        run = config.stub().RunWf(RunWfRequest(wf_spec_name="render", variables=variables))
        print(f"started; look at it with: lhctl get wfRun {run.id.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
