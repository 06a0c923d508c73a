"""The network side of this node beside its peers: C-STORE, C-FIND, C-MOVE, C-GET, in one run with the same clients."""
