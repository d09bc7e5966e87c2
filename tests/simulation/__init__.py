"""A deterministic simulation of durable runs: `make simulate`; see CONTRIBUTING.md."""
