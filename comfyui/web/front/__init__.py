"""What a request passes before any endpoint: limits, keys, page origins, the paths and who owns them."""
