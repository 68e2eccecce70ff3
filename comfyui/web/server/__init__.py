"""Our changes to uvicorn: which requests are read, how answers are written, and when a client is gone."""
