"""The client library and its command line."""
