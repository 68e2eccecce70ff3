"""The worker for LittleHorse: ``python -m comfyui.workers.littlehorse_worker``."""

import sys

from comfyui.workers.littlehorse.worker import main

if __name__ == "__main__":
    sys.exit(main())
