"""Nodes that ComfyUI does not have, for tests and benches with big, slow or failing prompts."""

from __future__ import annotations

from comfyui.engine.nodes.registry import NodeRun, Shown, Values, node
from comfyui.engine.raising import make_exception

_CHUNK = bytes(range(256)) * 4096
_BIGGEST_FILE = 1 << 40


@node(
    "SimulatedOutput",
    category="simulation",
    display_name="Simulated Output",
    description="Writes `count` files of `size` bytes and reports them under `output_key`, whatever the medium.",
    module="simulation",
    required={
        "count": ["INT", {"default": 1, "min": 0, "max": 10000}],
        "size": ["INT", {"default": 1024, "min": 0, "max": _BIGGEST_FILE}],
        "extension": ["STRING", {"default": "bin"}],
        "output_key": ["STRING", {"default": "images"}],
        "filename_prefix": ["STRING", {"default": "simulated"}],
    },
    optional={"after": ["*", {}]},
    output_node=True,
)
def simulated_output(
    run: NodeRun,
    count: int,
    size: int,
    extension: str,
    output_key: str,
    filename_prefix: str,
    after: object = None,  # noqa: ARG001
) -> Shown:
    """Byte i of each file is i % 256. `after` only orders: another node's result, waited for and not used."""
    target = run.folders.save_path(filename_prefix, run.folders.output)
    saved = []
    for number in range(count):
        name = target.file(extension, number)
        with (target.folder / name).open("wb") as file:
            for start in range(0, size, len(_CHUNK)):
                run.sleep(0)
                file.write(_CHUNK[: size - start])
        saved.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
    return Shown({output_key: saved})


@node(
    "SimulatedSleep",
    category="simulation",
    display_name="Simulated Sleep",
    description="Takes `seconds` in `steps` of progress, then passes its input on.",
    module="simulation",
    required={
        "seconds": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 86400.0, "step": 0.01}],
        "steps": ["INT", {"default": 1, "min": 1, "max": 10000}],
    },
    optional={"value": ["*", {}]},
    outputs=("*",),
)
def simulated_sleep(run: NodeRun, seconds: float, steps: int, value: object = None) -> Values:
    for step in range(1, steps + 1):
        run.sleep(seconds / steps)
        run.progress(step, steps)
    return (value,)


@node(
    "SimulatedError",
    category="simulation",
    display_name="Simulated Error",
    description="Raises an exception of the given type name, for instance torch.OutOfMemoryError.",
    module="simulation",
    required={
        "exception_type": ["STRING", {"default": "RuntimeError"}],
        "message": ["STRING", {"default": "simulated failure"}],
    },
    optional={"value": ["*", {}]},
    outputs=("*",),
)
def simulated_error(_run: NodeRun, exception_type: str, message: str, value: object = None) -> Values:  # noqa: ARG001
    raise make_exception(exception_type, message)


@node(
    "SimulatedCrash",
    category="simulation",
    display_name="Simulated Crash",
    description="Ends the engine's process by SIGSEGV or with an exit status, or hangs and ignores interrupts.",
    module="simulation",
    required={
        "how": [["segfault", "exit", "hang"], {}],
        "after": ["FLOAT", {"default": 0.0, "min": 0.0, "max": 86400.0, "step": 0.01}],
    },
    optional={"value": ["*", {}]},
    outputs=("*",),
)
def simulated_crash(run: NodeRun, how: str, after: float, value: object = None) -> Values:
    run.sleep(after)
    if how == "hang":
        run.hang()
    else:
        run.crash(how)
    return (value,)
