"""A ComfyUI-compatible server without a GPU, for demos, development and tests: a simulation, and it says so.

`python -m comfyui.engine` runs it; `Engine` runs it inside another program. It imports nothing else of this project.
"""

from comfyui.engine.faults import FaultError
from comfyui.engine.options import NEW_VERSION, OLD_VERSION, EngineOptions
from comfyui.engine.server import Engine

__all__ = ["NEW_VERSION", "OLD_VERSION", "Engine", "EngineOptions", "FaultError"]
