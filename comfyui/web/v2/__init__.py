"""Comfy API v2: the API that Comfy-Org's SDKs speak, on the jobs of the gateway."""
