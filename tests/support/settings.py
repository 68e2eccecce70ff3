"""Every class of settings that a process reads, so that tests can check all of them."""

from __future__ import annotations

from comfyui.settings import FieldGroup, variables
from comfyui.workers.littlehorse.settings import LittleHorseSettings
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.runpod.settings import RunPodSettings
from config import Settings

# The keys are the names of the processes in docs/configuration.md.
PROCESSES: dict[str, type[FieldGroup]] = {
    "gateway": Settings,
    "RunPod": RunPodSettings,
    "LittleHorse": LittleHorseSettings,
    "Postgres": PostgresWorkerSettings,
}


def all_variables() -> set[str]:
    """The environment variables of all processes."""
    return {name for settings in PROCESSES.values() for name in variables(settings)}
