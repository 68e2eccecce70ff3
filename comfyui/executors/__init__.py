"""Runs a prompt: the check before it, submission exactly once, the wait, and the quarantine of workflows."""
