"""The worker for Postgres and Supabase: ``python -m comfyui.workers.postgres_worker``."""

import sys

from comfyui.workers.postgres.worker import main

if __name__ == "__main__":
    sys.exit(main())
