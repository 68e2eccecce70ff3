"""The image's HEALTHCHECK: exit status 0 if the container's service answers, otherwise 1 with the reason."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def url(worker: str, server_port: str, comfy_port: str) -> str:
    """The URL to check: the gateway's ``/health``; the other roles serve nothing, so theirs is ComfyUI's."""
    if worker == "gateway":
        return f"http://127.0.0.1:{server_port}/health"
    return f"http://127.0.0.1:{comfy_port}/system_stats"


def main() -> int:
    environ = os.environ
    asked = url(
        environ.get("WORKER", "gateway"), environ.get("SERVER_PORT", "18188"), environ.get("COMFY_PORT", "8188")
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=4):
            return 0
    except urllib.error.HTTPError as error:
        print(f"{asked}: {error.code} {error.read(500).decode(errors='replace')}", file=sys.stderr)
    except OSError as error:
        print(f"{asked}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
