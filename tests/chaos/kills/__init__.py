"""The kill matrix: it kills the gateway, ComfyUI or both at each point of a job's life."""
