"""The node's own transport: upper layer and DIMSE messages on sockets, one thread an association (PS3.8, PS3.7)."""
