"""What a type checker can't know of, by name: users' values, and the types that they declare for them."""

from __future__ import annotations

from typing import Any

Value = Any
"""What somebody stores: any value that the codec knows, or a part of one."""

Hint = Any
"""A type as it was declared: a class, or what `typing` makes of classes."""
