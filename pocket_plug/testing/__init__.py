"""The kit for those who write plugins: contracts to inherit, a clock, span capture. It needs pytest.

- `contracts.BackendContract`, `layer_contract.LayerContract`: inherit one, and get the whole suite.
- `clock.FakeClock`, `clock.run_virtual`: time that a test owns.
- `spans.SpanCapture`: the spans that a block of code makes, as a tree.
"""

from __future__ import annotations

import pytest

# their asserts then say what they found, as those of a test module do
pytest.register_assert_rewrite("pocket_plug.testing.contracts", "pocket_plug.testing.layer_contract")
