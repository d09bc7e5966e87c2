"""Names for types in many signatures: users' values, which a type checker can't know, and attributes of spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Value = Any
"""A value that a user stores: any that the codec knows, or a part of one."""

Hint = Any
"""A type as it was declared: a class, or what `typing` makes of classes."""

SpanAttributes = Mapping[str, str | bool | int | float]
"""Attributes of a span, as nodes declare them and plugins add them."""
