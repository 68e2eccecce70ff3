"""The gateway's jobs and their journal."""
