"""Durations among the options of the command line."""

from __future__ import annotations

import click

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.durations import seconds


def duration(text: str) -> float:
    """The seconds in the value of an option: a number, or a text such as 500ms, 5m or 1h30m. Raises BadParameter."""
    try:
        return seconds(float(text) if text.replace(".", "", 1).isdecimal() else text, "TIME")
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
