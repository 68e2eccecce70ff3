"""Two libraries that are not ours read the bytes, and say what those mean: h11r, the stricter one, and h11."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import h11r

Pairs = tuple[tuple[bytes, bytes], ...]
_LIMITS = {"max_head_bytes": 1 << 17, "max_header_count": 10_000}


class RefusedError(Exception):
    """The judge does not take it for HTTP/1.1."""


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    headers: Pairs
    body: bytes


@dataclass
class Reading:
    """An answer as far as it came; ``headers`` have names in lower case, without those of interim answers."""

    status: int = 0
    headers: Pairs = ()
    body: bytes = b""
    complete: bool = False
    excess: bool = False


def answer_by_h11r(method: str, data: bytes, *, ended: bool) -> Reading:
    """Raises `RefusedError`. `ended`: the server has closed the connection after these bytes."""
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
    """Where h11r finds the end; that of all, where it finds none."""
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
    """As `answer_by_h11r`."""
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
    """Reads all that comes on one connection to a server, as it comes.

    `on_request` is told of each request when its head has come, and again when it is whole.
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
        """Begin a new transcript, between two requests."""
        self.transcript.clear()
        self.requests.clear()

    def feed(self, data: bytes) -> None:
        """Raises `RefusedError`."""
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
                # Only for the state: the bytes that are sent are the test's.
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
        """Let h11 read the same bytes: it must find the same requests. Raises `RefusedError`."""
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
