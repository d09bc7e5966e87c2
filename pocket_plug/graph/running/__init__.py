"""Executes a plan: one visit of a node after the other, and in each visit the node's phases."""
