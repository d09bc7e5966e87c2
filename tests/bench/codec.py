"""The codec against others: what it takes to be exact, and to run no code that a record names."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from pocket_plug.codec import Codec

from .harness import Bench, row


@dataclass
class Line:
    sku: str
    price: Decimal
    amount: int


@dataclass
class Order:
    id: int
    customer: str
    at: datetime
    lines: list[Line]


@dataclass
class Small:
    id: int
    name: str
    score: float


ORDER = Order(
    17, "Ada", datetime(2024, 2, 29, 12, tzinfo=UTC), [Line(f"sku-{n}", Decimal("9.90"), n) for n in range(5)]
)
SMALL = Small(17, "Ada", 1.5)
PICKLE = "pickle, which runs what it reads"
PLAIN = {"id": 17, "name": "Ada", "scores": [1.5, 2.5, 3.5], "address": {"city": "London", "zip": "W1"}, "active": True}


def serializers(value: Any) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """What writes such a value and what reads it, of each."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    logging.getLogger("langgraph").setLevel(logging.ERROR)  # it advises to name one's classes
    ours, langgraph = Codec(declared=[Order, Small]), JsonPlusSerializer()
    return {
        "pocket_plug": (ours.encode, ours.decode),
        PICKLE: (lambda value: pickle.dumps(value, 5), pickle.loads),
        "msgspec, of one type": (msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(type(value)).decode),
        "LangGraph JsonPlusSerializer": (langgraph.dumps_typed, langgraph.loads_typed),
    }


def cases(bench: Bench, value: Any, *, reads: bool) -> None:
    for name, (write, read) in serializers(value).items():
        record = write(value)
        assert read(record) == value
        if reads:
            bench.case(name, "read(record)", read=read, record=record)
        else:
            bench.case(name, "write(value)", write=write, value=value)
    bench.target("pocket_plug", 1.2 if reads and value is PLAIN else 2, PICKLE)


@row
def encode_small(bench: Bench) -> None:
    """encode a dataclass of an int, a str and a float"""
    cases(bench, SMALL, reads=False)


@row
def decode_small(bench: Bench) -> None:
    """decode a dataclass of an int, a str and a float"""
    cases(bench, SMALL, reads=True)


@row
def encode_order(bench: Bench) -> None:
    """encode a dataclass with five others, decimals and a datetime in it"""
    cases(bench, ORDER, reads=False)


@row
def decode_order(bench: Bench) -> None:
    """decode a dataclass with five others, decimals and a datetime in it"""
    cases(bench, ORDER, reads=True)


@row
def encode_plain(bench: Bench) -> None:
    """encode a dict of what JSON has"""
    cases(bench, PLAIN, reads=False)


@row
def decode_plain(bench: Bench) -> None:
    """decode a dict of what JSON has"""
    cases(bench, PLAIN, reads=True)
