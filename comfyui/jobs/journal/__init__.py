"""What is written down of each job, so that it outlives the gateway: the protocol, and its two implementations."""
