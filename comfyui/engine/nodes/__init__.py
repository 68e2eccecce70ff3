"""The engine's nodes: definitions and what each one does."""
