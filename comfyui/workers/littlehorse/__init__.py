"""The worker for LittleHorse. Only `worker` and `gate` know its SDK."""
