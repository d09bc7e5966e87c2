"""A graph made ready to run: its steps, joined and checked, with all that can be looked up once."""
