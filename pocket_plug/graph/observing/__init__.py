"""What observers see of graphs and runs, and the host that provides observers."""
