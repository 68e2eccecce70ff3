"""Assets of Comfy API v2: files that were uploaded by it, and what jobs have made, each by an id of its own."""
