"""Prometheus collectors and their names; docs/metrics.md lists each with its meaning.

Nothing here is global: each gateway or worker has its own `Metrics` with its own registry.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from comfyui.owners import is_given_name, key_of

_MOST_KEYS = 100
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All collectors of one gateway or worker. Label values are from small fixed sets: no ids, no callers' paths."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.prompts = Counter(
            "comfyui_gateway_prompts",
            "Prompts that were answered, by outcome: success or the type of the error.",
            ["outcome"],
            registry=self.registry,
        )
        self.key_prompts = Counter(
            "comfyui_gateway_key_prompts",
            "Prompts that were answered, by outcome and by the name of the key that submitted them.",
            ["key", "outcome"],
            registry=self.registry,
        )
        self._keys: set[str] = set()
        self.stage_seconds = Histogram(
            "comfyui_gateway_stage_seconds",
            "Seconds that finished prompts spent in each stage: staging, queued, executing, collecting.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "comfyui_gateway_waiting_requests",
            "Requests that wait for a prompt now.",
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "comfyui_gateway_prompts_in_flight",
            "Prompts of this gateway that are queued or running now, by ComfyUI server.",
            ["server"],
            registry=self.registry,
        )
        self.jobs = Gauge(
            "comfyui_gateway_jobs",
            "Jobs in the journal now, by state.",
            ["state"],
            registry=self.registry,
        )
        self.oldest_waiting_job_seconds = Gauge(
            "comfyui_gateway_oldest_waiting_job_seconds",
            "Seconds that the oldest async job without a server has waited; 0 if none waits.",
            registry=self.registry,
        )
        self.queue_paused = Gauge(
            "comfyui_gateway_queue_paused",
            "1 while the gateway's queue is paused, so that no prompt leaves it; otherwise 0.",
            registry=self.registry,
        )
        self.journal_writes = Counter(
            "comfyui_gateway_journal_writes",
            "Writes to the journal of jobs in STATE_DIR, by outcome: kept, failed.",
            ["outcome"],
            registry=self.registry,
        )
        self.journal_commit_seconds = Histogram(
            "comfyui_gateway_journal_commit_seconds",
            "Seconds that one commit to the journal took; many writes may share a commit.",
            buckets=_COMMIT_SECONDS,
            registry=self.registry,
        )
        self.upstream_requests = Counter(
            "comfyui_gateway_upstream_requests",
            "Requests to ComfyUI, by server, method, route and status (0: no answer).",
            ["server", "method", "route", "status"],
            registry=self.registry,
        )
        self.websocket_connected = Gauge(
            "comfyui_gateway_websocket_connected",
            "1 while the shared websocket to this ComfyUI server is open and not known to be silent.",
            ["server"],
            registry=self.registry,
        )
        self.websocket_reconnects = Counter(
            "comfyui_gateway_websocket_reconnects",
            "Times that the shared websocket was opened again, by reason: closed, refused, silent.",
            ["server", "reason"],
            registry=self.registry,
        )
        self.server_up = Gauge(
            "comfyui_gateway_server_up",
            "1 while this ComfyUI server is in rotation.",
            ["server"],
            registry=self.registry,
        )
        self.server_drained = Gauge(
            "comfyui_gateway_server_drained",
            "1 while this ComfyUI server is drained and gets no more prompts.",
            ["server"],
            registry=self.registry,
        )
        self.silent_seconds = Gauge(
            "comfyui_gateway_silent_seconds",
            "Seconds for which this server has run a prompt without any event from it; 0 if it runs none.",
            ["server"],
            registry=self.registry,
        )
        self.resubmissions = Counter(
            "comfyui_gateway_resubmissions",
            "Prompts that were submitted again, by reason: reply_lost, prompt_lost, output_gone, out_of_memory,"
            " gpu_fault.",
            ["reason"],
            registry=self.registry,
        )
        self.cancelled = Counter(
            "comfyui_gateway_cancellations",
            "Prompts that were taken out of ComfyUI, by reason: timeout, disconnect, request, shutdown, restart,"
            " orphan.",
            ["reason"],
            registry=self.registry,
        )
        self.webhooks = Counter(
            "comfyui_gateway_webhooks",
            "Attempts to deliver webhooks, by outcome: delivered, retried, given_up, refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.relayed_bytes = Counter(
            "comfyui_gateway_relayed_bytes",
            "Bytes of relayed bodies and websocket messages, by direction: to_comfyui, to_client.",
            ["direction"],
            registry=self.registry,
        )
        self.relayed_websockets = Gauge(
            "comfyui_gateway_relayed_websockets",
            "Websockets of clients that are open now.",
            registry=self.registry,
        )
        self.rejected = Counter(
            "comfyui_gateway_rejected_requests",
            "Requests that were refused before any work, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.runpod_jobs = Gauge(
            "comfyui_gateway_runpod_jobs",
            "Prompts for RunPod now, by state: waiting, pending, running.",
            ["state"],
            registry=self.registry,
        )
        self.runpod_requests = Counter(
            "comfyui_gateway_runpod_requests",
            "Requests to RunPod's API, by verb (run, status, cancel, health) and HTTP status (0: no answer).",
            ["verb", "status"],
            registry=self.registry,
        )
        self.runpod_result_bytes = Counter(
            "comfyui_gateway_runpod_result_bytes",
            "Bytes of results that were fetched from RunPod, by source: reply (inside the job's reply), link (behind"
            " a link in it).",
            ["source"],
            registry=self.registry,
        )

    def key_label(self, owner: str) -> str:
        """The label of an owner's key. Only the first names of KEYS_FILE get one, because each is a time series; the
        others share ``other``.
        """
        name = key_of(owner)
        if is_given_name(name):
            return "API_KEYS"
        if name not in self._keys and len(self._keys) >= _MOST_KEYS:
            return "other"
        self._keys.add(name)
        return name
