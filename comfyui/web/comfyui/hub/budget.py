"""`Budget`: the memory of all clients' websockets together."""

from __future__ import annotations


class Budget:
    """Knows how much waits in memory for each client. Beyond `max_bytes` for all together, it lies in files."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[object, int] = {}
        self._bytes = 0

    def holds(self, client: object, count: int) -> None:
        """Records how many bytes wait for this client now."""
        self._bytes += count - self._held.pop(client, 0)
        if count:
            self._held[client] = count

    @property
    def is_exceeded(self) -> bool:
        return self._bytes > self._max_bytes
