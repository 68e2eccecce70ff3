"""Records of each job that outlive the gateway: the protocol, and its two implementations."""
