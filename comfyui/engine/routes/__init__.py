"""The engine's HTTP routes, in ComfyUI's words."""
