"""Files on their way into ComfyUI: decoded or fetched, checked, and uploaded."""
