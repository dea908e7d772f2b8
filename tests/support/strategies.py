"""For Hypothesis: values that JSON can represent, and the number of examples."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from bridge.events.wire import MAX_INT

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def quick_examples() -> None:
    """From now on, run a fifth of the examples."""
    settings.register_profile("quick", max_examples=20)
    settings.load_profile("quick")


def examples(count: int) -> int:
    """Return how many of *count* examples to run."""
    return count * settings.default.max_examples // 100
