"""Every text of the console, by the page that shows it. Templates say ``{{ t.now.title }}``.

A text with ``{}`` parts is written ``{{ t.now.of_servers.format(up=2, all=3) }}``. Modules get the texts that they need
from the page, in ``data-…`` attributes.
"""

from __future__ import annotations

from types import SimpleNamespace

TEXTS = SimpleNamespace(
    common=SimpleNamespace(
        product="ComfyUI gateway",
        skip="Skip to the content",
        navigation="Console",
        now="Now",
        queue="Queue",
        results="Results",
        run="Run",
        usage="Usage",
        keys="Keys",
        signed_in_as="Signed in as {name}",
        sign_out="Sign out",
        close="Close",
        failed="That did not work: {reason}",
        unreachable="The gateway cannot be reached. Try again in a moment.",
        api="API",
    ),
    now=SimpleNamespace(
        title="Now",
        servers="Servers",
        no_servers="No server is configured.",
    ),
    queue=SimpleNamespace(),
    results=SimpleNamespace(),
    job=SimpleNamespace(),
    run=SimpleNamespace(),
    usage=SimpleNamespace(),
    keys=SimpleNamespace(),
    errors=SimpleNamespace(
        back="Back to the console",
        request_id="Request {id}",
        no_page="The console has no page {path}.",
    ),
)
