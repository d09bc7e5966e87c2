"""Applies upgrades to a run: converts its position to a RunPosition, and the result of the last upgrade back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from pocket_plug.codec import default_codec
from pocket_plug.errors import PocketError, RunChangedError
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.upgrades import RunPosition, Upgrade
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value

from .records import Frame
from .standing import Standing, in_order


def upgraded(run_id: str, standing: Standing, steps: Sequence[tuple[int, Upgrade]]) -> Standing:
    """The run's position after all these upgrades. Raises RunChangedError if one fails, CodecError if a value can't be stored."""
    position = _position(run_id, standing)
    for version, upgrade in steps:
        name = f"run {run_id!r}: the upgrade from version {version} to {version + 1}"
        try:
            position = upgrade(position)
        except PocketError:
            raise
        except Exception as error:  # its text is left out, since it may quote the value
            raise RunChangedError(f"{name} raised {type(error).__name__}") from error
        if not isinstance(position, RunPosition):
            raise RunChangedError(f"{name} returned {found(position)}, not a RunPosition")
    return _standing(position, standing)


def _position(run_id: str, standing: Standing, given: Value = None) -> RunPosition:
    """The position as a RunPosition. `given` is an item's input: its record has no value while it is in its first node."""
    frames, last = standing.frames, standing.last
    path = (*(frame.node for frame in frames if frame.node is not None), *standing.under)
    value = default_codec.decode(last.value) if last.value else given
    given_items = cast("Iterable[Value]", value)
    all_items = list(in_order(given_items)) if standing.items and isinstance(value, Iterable) else []
    return RunPosition(
        run_id=run_id,
        path=path,
        value=value,
        left_by=None if last.node is not None else last.action,
        hooks=last.hooks or None,
        visits=(*(frame.visits for frame in frames), *({} for _ in standing.under)),
        waits=standing.wait is not None and standing.wait.wait.is_open,
        items={
            number: _position(run_id, item, all_items[number] if number < len(all_items) else None)
            for number, item in standing.items.items()
        },
    )


def _standing(position: RunPosition, former: Standing) -> Standing:
    """The frames of a RunPosition. The inputs of the outer graphs stay as they were; only observers read them."""
    nodes: list[str | None] = [*position.path]
    if position.left_by is not None or not nodes:
        nodes.append(None)
    value = default_codec.encode(position.value)
    frames = [
        Frame(
            node=node,
            value=former.frames[depth].value if depth < min(len(former.frames), len(nodes)) - 1 else value,
            visits=dict(position.visits[depth]) if depth < len(position.visits) else {},
            action=(position.left_by or DEFAULT) if node is None else DEFAULT,
            hooks=position.hooks or "" if depth == len(nodes) - 1 else "",
        )
        for depth, node in enumerate(nodes)
    ]
    empty = Standing((Frame(None, b""),))
    items = {number: _standing(item, former.items.get(number, empty)) for number, item in position.items.items()}
    return Standing(tuple(frames), (), items, former.size, former.wait)
