"""The worker for RunPod serverless. Only `worker` knows RunPod's SDK."""
