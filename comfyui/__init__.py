"""The core of comfyui-gateway: run ComfyUI workflows synchronously and lose nothing.

Knows no web framework outside ``comfyui.web`` and never reads the environment: values are passed in, so that the
package works alone inside any worker image.
"""
