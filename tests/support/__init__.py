"""Helpers of the tests. Fixtures are in the conftest.py of their folder."""
