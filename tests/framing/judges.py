"""The judges: two foreign libraries that read the same bytes, h11 and the stricter h11r."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import h11r

Pairs = tuple[tuple[bytes, bytes], ...]
_LIMITS = {"max_head_bytes": 1 << 17, "max_header_count": 10_000}


class RefusedError(Exception):
    """The judge does not accept the bytes as HTTP/1.1."""


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    headers: Pairs
    body: bytes


@dataclass
class Reading:
    """An answer as far as it came; ``headers`` have names in lower case and exclude those of interim answers."""

    status: int = 0
    headers: Pairs = ()
    body: bytes = b""
    complete: bool = False
    excess: bool = False


def answer_by_h11r(method: str, data: bytes, *, ended: bool) -> Reading:
    """Reads an answer with h11r. Raises `RefusedError`. `ended`: the server closed the connection after these bytes."""
    judge = h11r.Connection(h11r.Role.CLIENT, **_LIMITS)
    judge.send_request(method, "/", [("Host", "x")])
    judge.end_of_message()
    reading = Reading()
    try:
        judge.receive_data(data)
        if ended:
            judge.receive_data(b"")
        while not reading.complete:
            match judge.next_event():
                case h11r.Response() as head:
                    reading.status, reading.headers = head.status_code, _lower(head.headers)
                case h11r.Data() as part:
                    reading.body += part.data
                case h11r.EndOfMessage():
                    reading.complete = True
                case h11r.InformationalResponse() as interim:
                    if interim.status_code == 101:
                        raise RefusedError("101")
                case _:
                    break
    except h11r.ProtocolError as error:
        raise RefusedError(str(error)) from error
    reading.excess = reading.complete and bool(judge.trailing_data[0])
    return reading


def end_of_answer(method: str, data: bytes) -> int:
    """The index at which h11r finds the end of the answer, or the length of `data` if it finds none."""
    judge = h11r.Connection(h11r.Role.CLIENT, **_LIMITS)
    judge.send_request(method, "/", [("Host", "x")])
    judge.end_of_message()
    try:
        judge.receive_data(data)
        while True:
            match judge.next_event():
                case h11r.EndOfMessage():
                    return len(data) - len(judge.trailing_data[0])
                case h11r.ReceiveStatus() | h11r.ConnectionClosed():
                    return len(data)
    except h11r.ProtocolError:
        return len(data)


def answer_by_h11(method: str, data: bytes, *, ended: bool) -> Reading:
    """Like `answer_by_h11r`, with h11."""
    judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 17)
    judge.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    judge.send(h11.EndOfMessage())
    reading = Reading()
    try:
        judge.receive_data(data)
        if ended:
            judge.receive_data(b"")
        while not reading.complete:
            event = judge.next_event()
            match event:
                case h11.Response():
                    reading.status, reading.headers = event.status_code, tuple(event.headers)
                case h11.Data():
                    reading.body += bytes(event.data)
                case h11.EndOfMessage():
                    reading.complete = True
                case h11.InformationalResponse():
                    if event.status_code == 101:
                        raise RefusedError("101")
                case _:
                    break
    except h11.RemoteProtocolError as error:
        raise RefusedError(str(error)) from error
    reading.excess = reading.complete and bool(judge.trailing_data[0])
    return reading


@dataclass
class RequestsJudge:
    """Reads everything that comes on one connection to a server, as it comes.

    Calls `on_request` for each request when its head has come, and again when it is complete.
    """

    on_request: Callable[[Request, bool], None] = lambda _request, _whole: None
    transcript: bytearray = field(default_factory=bytearray)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._judge = h11r.Connection(h11r.Role.SERVER, **_LIMITS)
        self._head: h11r.Request | None = None
        self._body = bytearray()

    @property
    def between_requests(self) -> bool:
        return self._head is None and not self._judge.buffered_nbytes

    def forget(self) -> None:
        """Begins a new transcript, between two requests."""
        self.transcript.clear()
        self.requests.clear()

    def feed(self, data: bytes) -> None:
        """Reads more bytes. Raises `RefusedError`."""
        self.transcript += data
        try:
            self._judge.receive_data(data)
            while self._next():
                pass
        except h11r.ProtocolError as error:
            raise RefusedError(f"h11r: {error}: {bytes(self.transcript[-400:])!r}") from error

    def _next(self) -> bool:
        match self._judge.next_event():
            case h11r.Request() as head:
                self._head = head
                self._body.clear()
                self.on_request(self._request(), False)
            case h11r.Data() as part:
                self._body += part.data
            case h11r.EndOfMessage():
                request = self._request()
                self._head = None
                self.requests.append(request)
                # Only updates the judge's state; the test itself sends the answer.
                self._judge.send_response(200, [("Content-Length", "0")])
                self._judge.end_of_message()
                self._judge.start_next_cycle()
                self.on_request(request, True)
            case _:
                return False
        return True

    def _request(self) -> Request:
        assert self._head is not None
        return Request(self._head.method, self._head.target, _lower(self._head.headers), bytes(self._body))

    def check_with_h11(self) -> None:
        """Lets h11 read the same bytes. Raises `RefusedError` if it does not find the same requests."""
        judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
        found: list[Request] = []
        head: h11.Request | None = None
        body = b""
        try:
            judge.receive_data(bytes(self.transcript))
            while True:
                event = judge.next_event()
                match event:
                    case h11.Request():
                        head, body = event, b""
                    case h11.Data():
                        body += bytes(event.data)
                    case h11.EndOfMessage():
                        assert head is not None
                        found.append(Request(head.method, head.target, tuple(head.headers), body))
                        judge.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                        judge.send(h11.EndOfMessage())
                        judge.start_next_cycle()
                    case _:
                        break
        except h11.RemoteProtocolError as error:
            raise RefusedError(f"h11: {error}") from error
        if found != self.requests:
            raise RefusedError(f"h11 reads {found!r} where h11r reads {self.requests!r}")


def _lower(headers: Pairs) -> Pairs:
    return tuple((name.lower(), value) for name, value in headers)
