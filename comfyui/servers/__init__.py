"""One ComfyUI server behind us, and the pool of them: process, health, events, queue positions."""
