"""Assets of Comfy API v2."""
