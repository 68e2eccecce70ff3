# ruff: noqa: N802 - the names of the methods are those of the protocol
"""A fake of LittleHorse's server, on the servicer of the real SDK: ``python -m tests.support.littlehorse_fake``.

It runs in a process of its own. Tests send it commands as lines of JSON on its standard input, and it reports what the
worker did as lines of JSON on its standard output. It tests only the client's side: retries, timeouts and persistence
belong to the real server.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from littlehorse.model import (
    LHHostInfo,
    LittleHorseServicer,
    PollTaskResponse,
    RegisterTaskWorkerResponse,
    ScheduledTask,
    TaskDef,
    TaskDefId,
    TaskRunId,
    VariableValue,
    VarNameAndVal,
    WfRunId,
    add_LittleHorseServicer_to_server,
)


def tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


class FakeServer(LittleHorseServicer):
    """One of the hosts, which all share one state."""

    def __init__(self, shared: Shared, host: int) -> None:
        self._shared = shared
        self._host = host

    async def PutTaskDef(self, request: Any, context: Any) -> Any:
        tell("PutTaskDef", request=MessageToDict(request))
        if self._shared.refuse_definition:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "TaskDef already exists and is different")
        self._shared.definition = TaskDef(id=TaskDefId(name=request.name), input_vars=request.input_vars)
        return self._shared.definition

    async def GetTaskDef(self, request: Any, context: Any) -> Any:
        return self._shared.definition

    async def RegisterTaskWorker(self, request: Any, context: Any) -> Any:
        tell("RegisterTaskWorker")
        hosts = [LHHostInfo(host="127.0.0.1", port=port) for port in self._shared.ports]
        return RegisterTaskWorkerResponse(your_hosts=hosts, is_cluster_healthy=True)

    async def PollTask(self, requests: Any, context: Any) -> Any:
        """Sends replies even after the end of the requests, as the real server does."""
        tell("PollTask", host=self._host)
        async for _request in requests:
            tell("asked", host=self._host)
            task = await self._shared.tasks[self._host].get()
            if task is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            tell("given", host=self._host, guid=task.task_run_id.task_guid)
            yield PollTaskResponse(result=task)
        tell("no_more_requests", host=self._host)
        await asyncio.Event().wait()

    async def ReportTask(self, request: Any, context: Any) -> Any:
        from google.protobuf.empty_pb2 import Empty

        if self._shared.failing_reports:
            self._shared.failing_reports -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        tell("ReportTask", size=request.ByteSize(), report=MessageToDict(request))
        return Empty()


class Shared:
    def __init__(self, hosts: int) -> None:
        self.ports: list[int] = []
        self.tasks: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(hosts)]
        self.definition: Any = None
        self.refuse_definition = False
        self.failing_reports = 0

    def do(self, command: dict[str, Any]) -> None:
        match command:
            case {"schedule": workflow, "guid": guid, **options}:
                self.tasks[options.get("host", 0)].put_nowait(scheduled(workflow, guid, options.get("attempt", 0)))
            case {"cut": host}:
                self.tasks[host].put_nowait(None)
            case {"fail_reports": count}:
                self.failing_reports = count
            case {"refuse_definition": _}:
                self.refuse_definition = True


def scheduled(workflow: Any, guid: str, attempt: int) -> Any:
    value = VariableValue() if workflow is None else VariableValue(json_obj=json.dumps(workflow))
    return ScheduledTask(
        task_run_id=TaskRunId(wf_run_id=WfRunId(id="wf-1"), task_guid=guid),
        task_def_id=TaskDefId(name="execute-comfyui-workflow"),
        attempt_number=attempt,
        variables=[VarNameAndVal(var_name="workflow", value=value)],
    )


async def main(hosts: int, port: int) -> None:
    shared = Shared(hosts)
    servers = [grpc.aio.server() for _ in range(hosts)]
    for host, server in enumerate(servers):
        add_LittleHorseServicer_to_server(FakeServer(shared, host), server)
        shared.ports.append(server.add_insecure_port(f"127.0.0.1:{port}"))
        await server.start()
    tell("serving", ports=shared.ports)
    while line := await asyncio.to_thread(sys.stdin.readline):
        shared.do(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
