"""The HTTP layer: the only place, beside server.py, that knows FastAPI."""
