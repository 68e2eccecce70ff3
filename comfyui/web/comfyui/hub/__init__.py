"""The websockets of the merged face: what all servers tell, told to each client as if there were one ComfyUI."""
