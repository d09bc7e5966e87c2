"""A graph as a picture or as text. These modules are imported when one is requested."""
