"""Statistics of a text, independent of events."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+")

_PLEASANT = frozenset(
    "beautiful bright calm clear dance flew floating fly flying free friend friends garden gentle glad gold golden "
    "good happy home hope joy kind laugh laughed laughing light love loved music peace peaceful safe sang smile "
    "smiled song soft soaring sun sunlight sweet warm welcome wonder wonderful".split()
)
_UNPLEASANT = frozenset(
    "afraid alone angry bad blood broken chased cold cried cry crying danger dark darkness dead death die died "
    "drown drowning fail failed fall falling fear fell fire hurt late lost monster pain panic sad scared scream "
    "screamed shadow shadows sick storm terrible terror trapped ugly war".split()
)
_NEGATIONS = frozenset("no not never without nothing hardly".split())
_STOP_WORDS = frozenset(
    "a about after all an and are as at be been but by could did do for from had has have he her him his i in into "
    "is it its me my not of on or our out over she so that the their them then there they this through to under "
    "until up was we were what when where which who with without would you your".split()
)


@dataclass(frozen=True)
class Statistics:
    """The result of :func:`analyse`.

    Arguments:
        words, distinct_words, sentences: Counts.
        mean_sentence_words: Words per sentence; 0 for an empty text.
        top_words: The most frequent words without stop words, most frequent first.
        sentiment: From -1 (all unpleasant) to 1 (all pleasant); 0 if no word is either.
    """

    words: int
    distinct_words: int
    sentences: int
    mean_sentence_words: float
    top_words: list[str]
    sentiment: float


def analyse(text: str) -> Statistics:
    """Count the words and sentences of *text* and rate its mood; "not happy" counts as unpleasant."""
    words = [word.lower() for word in _WORD.findall(text)]
    sentences = sum(1 for part in _SENTENCE_END.split(text) if _WORD.search(part))
    moods = [mood for before, word in zip(["", *words], words, strict=False) if (mood := _mood(before, word))]
    telling = Counter(word for word in words if word not in _STOP_WORDS and len(word) > 2)
    return Statistics(
        words=len(words),
        distinct_words=len(set(words)),
        sentences=sentences,
        mean_sentence_words=round(len(words) / sentences, 2) if sentences else 0.0,
        top_words=[word for word, _ in sorted(telling.items(), key=lambda item: (-item[1], item[0]))[:5]],
        sentiment=round(sum(moods) / len(moods), 2) if moods else 0.0,
    )


def _mood(before: str, word: str) -> int:
    mood = (word in _PLEASANT) - (word in _UNPLEASANT)
    return -mood if before in _NEGATIONS else mood
