"""What we change of uvicorn: which requests are read, how answers are written, when a client is gone."""
