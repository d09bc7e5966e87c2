"""A run on its way through a plan: visit by visit, phase by phase."""
