"""The checks that a request passes before any endpoint: limits, keys, page origins, paths and their owners."""
