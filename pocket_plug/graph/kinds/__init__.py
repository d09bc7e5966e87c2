"""Nodes that do more than their phases: they hold a graph, take many items, ask or sleep. Each is a kind of step."""
