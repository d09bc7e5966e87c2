"""A census on a cluster that fits on one machine: `make cluster`."""
