"""The bytes between the gateway and servers."""
