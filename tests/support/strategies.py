"""Values that JSON can carry, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from bridge.events.wire import MAX_INT, MIN_INT

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(MIN_INT, MAX_INT) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
