"""Type checkers read these files, in `make lint`; they aren't imported, since their types would affect other tests."""

collect_ignore_glob = ["*_types.py", "refused.py"]
