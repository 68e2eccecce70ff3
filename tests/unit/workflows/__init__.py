"""Workflows, without any I/O."""
