"""Workflows as data: formats, node definitions, checks, conversion, progress. Pure functions without I/O."""
