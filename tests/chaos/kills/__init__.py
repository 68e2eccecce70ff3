"""The kill matrix: gateway, ComfyUI or both are killed at each point of a job's life."""
