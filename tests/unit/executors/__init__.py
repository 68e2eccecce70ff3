"""The executors: how a prompt is run on ComfyUI or at RunPod."""
