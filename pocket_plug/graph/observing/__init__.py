"""What is seen of graphs and runs from outside, and who is asked to look."""
