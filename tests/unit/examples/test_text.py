"""Text statistics of the example handlers."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.text import Statistics, analyse

DREAM = (
    "I was flying over a golden garden with my friend. We laughed in the sunlight! "
    "Then the garden turned dark… I fell, and nobody heard me scream."
)


def test_a_dream() -> None:
    """The analysis counts words and sentences, and finds the top words and the sentiment of a text."""
    assert analyse(DREAM) == Statistics(
        words=27,
        distinct_words=24,
        sentences=4,
        mean_sentence_words=6.75,
        top_words=["garden", "dark", "fell", "flying", "friend"],
        sentiment=0.4,  # garden counts twice
    )


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "empty": ("", {"words": 0, "sentences": 0, "mean_sentence_words": 0.0, "top_words": [], "sentiment": 0.0}),
    "no words": ("... 42 !? \n", {"words": 0, "sentences": 0, "sentiment": 0.0}),
    "no full stop": ("I sang", {"words": 2, "sentences": 1, "mean_sentence_words": 2.0}),
    "ellipsis and marks end once": ("Why?! No... I see.", {"words": 4, "sentences": 3, "mean_sentence_words": 1.33}),
    "apostrophes": ("I don't, you don’t.", {"words": 4, "distinct_words": 4}),
    "case": ("Rain rain RAIN", {"words": 3, "distinct_words": 1, "top_words": ["rain"]}),
    "other scripts": ("Ночью шёл дождь. Das Mädchen träumte.", {"words": 6, "sentences": 2}),
    "numbers are no words": ("At 3 o'clock 12 dogs", {"words": 3}),
    "most frequent first, then alphabetically": ("moon star moon star river", {"top_words": ["moon", "star", "river"]}),
    "five words at most": ("one two three four five six", {"top_words": ["five", "four", "one", "six", "three"]}),
    "stop words and short words": ("It is up to me, so we go", {"top_words": []}),
    "pleasant": ("A calm and happy home.", {"sentiment": 1.0}),
    "unpleasant": ("I was lost and afraid in the storm.", {"sentiment": -1.0}),
    "negated": ("I was not happy.", {"sentiment": -1.0}),
    "negated fear": ("I was never afraid, without pain.", {"sentiment": 1.0}),
    "mixed": ("Sweet sad sweet", {"sentiment": 0.33}),
    "neutral": ("The table stood there.", {"sentiment": 0.0}),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=list(CASES))
def test_analyse(text: str, expected: dict[str, Any]) -> None:
    """Each case tests one property of texts."""
    found = vars(analyse(text))
    assert {name: found[name] for name in expected} == expected
