"""A ComfyUI that renders on a RunPod serverless endpoint: what `BACKEND=runpod` puts behind the gateway.

`bridge.RunPodBridge` is a small server on loopback that speaks ComfyUI's protocol. The gateway has it as its one
ComfyUI server and needs to know nothing else of RunPod; what the bridge does not own it relays to the local ComfyUI.
"""
