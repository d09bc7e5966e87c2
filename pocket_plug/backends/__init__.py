"""The backends that come along, each a plugin module of its own."""
