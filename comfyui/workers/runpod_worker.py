"""The worker for RunPod serverless: ``python -m comfyui.workers.runpod_worker``."""

import sys

from comfyui.workers.runpod.worker import main

if __name__ == "__main__":
    sys.exit(main())
