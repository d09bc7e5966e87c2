"""A census on a cluster on this machine: `make cluster`."""
