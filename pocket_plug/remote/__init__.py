"""`exec` in another process: what executors share. A plugin subclasses `Executor`; its workers call `perform`.

`executor` is what a plugin writes, `dispatch` how items are batched and sent, `wire` the format of messages,
`failures` how exceptions come back, `versions` how a worker sees that it has the same code, `far_side` what it does.
"""

from .executor import Executor as Executor
from .executor import close_at_exit as close_at_exit
from .far_side import perform as perform

__all__ = ["Executor", "close_at_exit", "perform"]
