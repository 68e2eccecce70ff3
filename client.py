"""The client on the command line: ``python client.py run examples/txt2img.json --output out/``.

Programs import ``comfyui.sdk``; the same names can be imported from here.
"""

import sys

from comfyui.sdk import *  # noqa: F403 - the face of comfyui.sdk has its names
from comfyui.sdk.command_line import Exit, main

__all__ = ["Exit", "main"]  # and those of comfyui.sdk

if __name__ == "__main__":
    sys.exit(main())
