"""A server of models that needs keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4096


class Store:
    """Serves CONTENT under every path and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.content = CONTENT
        self.etag = '"one"'
        self.ranges = True
        self.break_after: list[int] = []
        """For each request, the number of bytes after which the connection is cut; later requests are not cut."""
        self.statuses: list[int] = []
        self.redirect_to: str | None = None
        self.url = ""


@contextmanager
def serving(store: Store) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            store.requests.append((self.path, dict(self.headers)))
            if store.redirect_to is not None:
                self.send_response(302)
                self.send_header("Location", store.redirect_to)
                self.end_headers()
                return
            if store.statuses:
                self.send_error(store.statuses.pop(0))
                return
            start = 0
            wanted = self.headers.get("Range")
            if wanted and store.ranges and self.headers.get("If-Range") in {None, store.etag}:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = store.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", store.etag)
            self.end_headers()
            self.wfile.write(body[: store.break_after.pop(0)] if store.break_after else body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            store.url = f"http://127.0.0.1:{server.server_address[1]}"
            yield store.url
        finally:
            server.shutdown()
            thread.join()
