"""A graph as a picture or as text. It is imported when somebody asks for one."""
