"""How bytes reach a server: connections, requests, bodies. Nothing here knows what a prompt is."""
