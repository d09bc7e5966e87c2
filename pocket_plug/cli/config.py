"""`config check` and `config schema`: check a configuration file, and print the schema for one."""

from __future__ import annotations

from pathlib import Path

import click

from pocket_plug.plugins.checking import check_config
from pocket_plug.plugins.config import default_config
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.plugins.schema import config_schema

from .output import as_json, echo, echo_json, how_many_are_wrong


@click.group
def config() -> None:
    """Check a configuration file, and print its JSON Schema."""


@config.command
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json
def check(file: Path | None, as_json: bool) -> int:
    """Check FILE, and print what is wrong in it.

    Each problem is printed with its line, and the exit code is 1 if there is any. A layer that refuses its options'
    values, a plugin that refuses its settings, and a stack whose layers don't fit together give one problem at a time.
    FILE is a pocket.toml, or a pyproject.toml with the table [tool.pocket_plug]. Without it, the nearest configuration
    is checked. Stores are built but not opened: no server is contacted, and nothing is written.
    """
    found = file or default_config()
    if found is None:
        raise click.UsageError("there is no configuration, neither in this folder nor above it; name a FILE")
    findings = check_config(found)
    if as_json:
        echo_json(
            [{"file": each.file, "line": each.line, "key": each.table, "message": each.message} for each in findings]
        )
    else:
        for each in findings:
            echo(str(each))
        echo(f"{found}: {how_many_are_wrong(len(findings))}", err=True)
    return int(bool(findings))


@config.command
def schema() -> None:
    """Print the JSON Schema (2020-12) of pocket.toml.

    It includes what the installed plugins offer. Editors with support for TOML use it if the file begins with the line:
    #:schema ./pocket.schema.json
    """
    with Pocket() as pocket:
        echo_json(config_schema(pocket.offers))
