"""The readonly layer: reads pass, and every change of the store is refused. A plugin module, like any third party's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from pocket_plug.errors import ReadOnlyError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.shown_names import in_short
from pocket_plug.store.backend import NO_EXPECTATIONS, Change
from pocket_plug.store.layer import Layer, parts


class Readonly(Layer):
    """Refuses every write with ReadOnlyError; a check of versions without changes passes.

    Runs that would write are refused before they begin: durable ones, and those of graphs with a node that declares `writes`.
    Any other node that writes fails at its end. Layers outside of it that write by themselves (migrate, persistence, bounding)
    are refused; those inside still write.

    >>> from pocket_plug import SyncStore
    >>> SyncStore(layers=[Readonly()]).set("guest", "Alice")
    Traceback (most recent call last):
      ...
    pocket_plug.errors.ReadOnlyError: the store 'memory' is read-only, by its layer `readonly`, so 'guest' can't be written ...
    """

    inline_write = True
    needs_loop = False

    def on_build(self) -> None:
        """Mark the stack as read-only, for outer layers and runs."""
        self.read_only = True

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Raise ReadOnlyError if there are changes; a check without changes is the inner one's."""
        if changes:
            keys = sorted({str(change.key) for change in changes})
            raise ReadOnlyError(
                f"the store {' > '.join(map(repr, parts(self.inner)))!r} is read-only, by its layer `readonly`, so "
                f"{in_short(keys)} can't be written or deleted; use a store without this layer"
            )
        return await self.inner.write(changes, expect)

    async def compact(self, size: int) -> int:
        """Free nothing: that would write to the file."""
        return 0

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None] | None:
        """None: nothing is written, so no turn is needed."""
        return None


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Readonly]
