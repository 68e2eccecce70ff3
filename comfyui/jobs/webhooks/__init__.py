"""Telling callers and the operator of jobs by webhooks: whom, what counts as told, and how it is signed."""
