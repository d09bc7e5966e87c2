"""What users write: nodes with their phases and options, and the chains that join them."""
