"""A minimal FastAPI application on uvicorn, with which the gateway's start is compared."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "alive"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["SERVER_PORT"]), log_config=None)
