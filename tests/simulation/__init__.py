"""A deterministic simulation of durable runs: `make simulate`, and what CONTRIBUTING.md says of it."""
