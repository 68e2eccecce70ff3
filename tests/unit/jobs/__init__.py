"""What the gateway knows of the prompts that it runs."""
