"""A run that is followed while it goes: its events, and the bounded buffer that they come through."""
