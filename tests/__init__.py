"""The tests of comfyui-gateway; helpers are in `tests.support`, fixtures in the conftest files."""
