"""The prompts that the gateway runs: their jobs, their cancels, and how they ended."""
