"""Runs prompts on a RunPod serverless endpoint: `server.RunPodServer`, which is one more server to the queue."""
