"""The files in here are read by type checkers, in `make lint`; imported, their types would only be in others' way."""

collect_ignore_glob = ["*_types.py", "refused.py"]
