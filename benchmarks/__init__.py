"""`python -m benchmarks` (`make bench`): what the gateway costs, as ratios to a direct client of the same ComfyUI.

Needs nothing but this repository: the embedded engine and the gateway run as processes of their own on free ports of
the loopback. docs/performance.md has the targets, the figures and what they mean.
"""
