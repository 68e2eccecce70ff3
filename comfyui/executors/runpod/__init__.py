"""Runs prompts on a RunPod serverless endpoint: `server.RunPodServer`, one more server for the queue."""
