"""`ServersNow`: tells the scheduler how the servers of a pool are."""

from __future__ import annotations

from comfyui.jobs.abilities import Abilities
from comfyui.jobs.paces import Paces
from comfyui.jobs.queue_options import TurnOptions
from comfyui.jobs.scheduler import Scheduler
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool


class ServersNow:
    """At first, all servers are down for the scheduler."""

    def __init__(
        self, pool: BackendPool, scheduler: Scheduler, abilities: Abilities, paces: Paces, options: TurnOptions
    ) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._abilities = abilities
        self._paces = paces
        self._places = options.places
        self._is_ours = options.queue == "gateway"
        for backend in pool.servers:
            scheduler.set_server(backend.name, up=False)
            if self._is_ours and isinstance(backend, Backend):
                backend.watcher.tell_of_others()

    def tell(self) -> None:
        """Called before each decision."""
        is_one_coming = False
        for backend in self._pool.servers:  # the platform is the last of them
            if not isinstance(backend, Backend):
                # It has its own queue, and does not tell how many of its workers are free. Its time costs money.
                up = backend.ready and backend.takes_more and not is_one_coming
                self._scheduler.set_server(backend.name, up=up, drained=backend.drained, places=None, many=True)
                continue
            up = backend.ready and backend.is_cleared and self._abilities.is_known(backend)
            is_one_coming |= backend.is_new or (backend.ready and not up)
            places = self._places if self._is_ours else self._paces.of(backend.name)
            others = backend.watcher.others if self._is_ours and places is not None else 0
            self._scheduler.set_server(backend.name, up=up, drained=backend.drained, others=others, places=places)
