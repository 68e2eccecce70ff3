"""The gateway's own endpoints, and how their bodies are read and their answers written."""
