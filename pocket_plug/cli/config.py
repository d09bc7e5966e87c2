"""`config check` and `config schema`: is a configuration file right, and what may stand in it."""

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
    """Say all that is wrong in FILE, each with its line; the exit code is 1 if there is anything.

    FILE is a pocket.toml, or a pyproject.toml with the table [tool.pocket_plug]; without it, the file that the command line
    finds. Stores are built and not opened: no server is asked, and nothing is written.
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
    """Print the JSON Schema (2020-12) of pocket.toml, with what the installed plugins offer.

    Editors that know TOML take it from a first line: #:schema ./pocket.schema.json
    """
    with Pocket() as pocket:
        echo_json(config_schema(pocket.offers))
