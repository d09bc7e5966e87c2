"""Stores from a TOML file: which backend, and which layers around it, is for those to say who run the program.

A mistake in the file is an error that says where it is and what was meant.
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

        with Pocket(file) as pocket:  # opens all stores; `async with` does it where there is an event loop
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
