"""Exceptions that nodes raise on request, under the type names of ComfyUI's world (torch need not be there)."""

from __future__ import annotations

import builtins
from typing import Any

from comfyui.engine.faults import Faults

OUT_OF_MEMORY = "torch.OutOfMemoryError"
OUT_OF_MEMORY_TIPS = (
    "This error means you ran out of memory on your GPU.\n\n"
    "TIPS: If the workflow worked before you might have accidentally set the batch_size to a large number."
)
_OUT_OF_MEMORY_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 512.00 MiB is "
    "free."
)
_CUDA_FAULT_MESSAGE = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)


def type_name(error: BaseException) -> str:
    """`ValueError`, `torch.OutOfMemoryError`: the module is named unless it is the builtins."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def make_exception(name: str, message: str) -> Exception:
    """An exception whose `type_name` is `name`, whether such a class exists here or not."""
    module, _, short = name.rpartition(".")
    known = getattr(builtins, short, None) if not module else None
    if isinstance(known, type) and issubclass(known, Exception):
        return known(message)
    made: Any = type(short, (RuntimeError,), {"__module__": module or "builtins"})
    exception: Exception = made(message)
    return exception


def is_out_of_memory(error: Exception) -> bool:
    return type_name(error) in (OUT_OF_MEMORY, "torch.cuda.OutOfMemoryError")


class PromptThreadDied(BaseException):
    """The prompt thread ends here, in the middle of a prompt."""


def raise_injected(faults: Faults, class_type: str, node_id: str) -> None:
    """Raises the error that a switched-on fault has for this node."""
    facts = {"class_type": class_type, "node_id": node_id}
    if faults.take("prompt_thread_dies", **facts) is not None:
        raise PromptThreadDied
    defaults = {
        "cuda_fault": ("RuntimeError", _CUDA_FAULT_MESSAGE),
        "out_of_memory": (OUT_OF_MEMORY, _OUT_OF_MEMORY_MESSAGE),
        "node_error": ("RuntimeError", "this node fails on purpose"),
    }
    for fault, (kind, message) in defaults.items():
        config = faults.take(fault, **facts)
        if config is not None:
            raise make_exception(str(config.get("exception_type", kind)), str(config.get("message", message)))
