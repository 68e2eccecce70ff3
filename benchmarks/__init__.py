"""`python -m benchmarks` (`make bench`): what the gateway costs, as ratios to a direct client of the same ComfyUI.

It needs only this repository: the embedded engine and the gateway run as separate processes on free ports of the
loopback. docs/performance.md has the targets, the figures and their meaning.
"""
