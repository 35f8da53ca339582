"""The contract: all that the author of a backend, store, network or observer must read."""
