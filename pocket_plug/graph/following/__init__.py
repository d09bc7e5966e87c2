"""Following a run while it executes: its events, and the bounded buffer that they pass."""
