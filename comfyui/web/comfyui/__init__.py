"""ComfyUI's own face: whatever the gateway does not own is relayed to a ComfyUI server."""
