"""What the gateway knows of the prompts that it runs: each one's job, their cancels, and how they ended."""
