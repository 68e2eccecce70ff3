"""The ComfyUI servers behind the gateway."""
