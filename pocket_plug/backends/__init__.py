"""The backend that comes along, `sqlite`, a plugin like any other; and what backends over a network share: `network`, `pool`."""
