"""What users write: nodes with their phases and options, and what joins them."""
