"""Stores from a TOML file: the operators of a program choose the backend and the layers.

A mistake in the file raises an error that says where the mistake is, and suggests the right word.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pocket_plug import ConfigError, Pocket

POCKET_TOML = """
[store]
url = "sqlite:///${DATA}/state.db?durability=process"
layers = ["metrics"]

[stores.cache]
layers = [{ use = "bounding", max_entries = 2, ttl = "5m" }]
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATA"] = folder
        file = Path(folder, "pocket.toml")
        file.write_text(POCKET_TOML)

        with Pocket(file) as pocket:  # opens all stores; with an event loop, use `async with`
            store, cache = pocket.store.sync, pocket.stores["cache"].sync
            print("store:", repr(store).replace(folder, "…"))
            print("cache:", cache)
            for name in ("a", "b", "c"):
                store.set(name, name.upper())
                cache.set(name, name.upper())
            print("kept in the database:", list(store.keys()))
            print("kept in the cache:   ", list(cache.keys()))

        file.write_text(POCKET_TOML.replace("max_entries", "max_entires"))
        try:
            with Pocket(file):
                pass
        except ConfigError as error:
            print("refused:")
            print(str(error).replace(folder, "…"))


if __name__ == "__main__":
    main()
