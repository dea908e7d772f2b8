"""Patterns match like those of PSUBSCRIBE; Redis itself is the reference."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from bridge.events.patterns import compile_pattern, escape_glob, is_literal
from bridge.storage.keys import Keys
from tests.support.strategies import examples

#: Every character with a meaning in patterns, and some others.
ALPHABET = "ab.*?[]^-\\"
#: Two characters that sets distinguish reach every branch; with length 2 they interact.
SUBJECTS = ["".join(text) for length in (1, 2) for text in itertools.product(ALPHABET, repeat=length)]
SUBJECTS += ["aaa", "aba", "a.b", "ab.ab", "a.b.a", "ba-b", "abab", "b]a", "a^b", "ab\\", "a*b?", "[ab]"]


def matches(pattern: str, subject: str) -> bool:
    return compile_pattern(pattern).fullmatch(subject) is not None


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("*", ["a", "dream.created", "a\nb"], []),
        ("dream.created", ["dream.created"], ["dream.creates", "dreamXcreated", "dream.created.x", "Dream.created"]),
        ("dream.*", ["dream.created", "dream.image.rendered", "dream."], ["dream", "dreams.created"]),
        ("*.created", ["dream.created", "a.b.created"], ["dream.created.x", "created"]),
        ("a**b", ["ab", "axxb"], ["a", "abc"]),
        ("dream.?", ["dream.a"], ["dream.", "dream.ab"]),
        ("[ab]x", ["ax", "bx"], ["cx", "x", "abx"]),
        ("[a-c]", ["a", "b", "c"], ["d", "-", "A"]),
        ("[c-a]", ["a", "b", "c"], ["d"]),
        ("[^ab]", ["c", "^"], ["a", "b", ""]),
        ("[^]", ["a", "]"], ["", "ab"]),
        ("a[]", [], ["a", "a]", "a[]"]),
        ("[a^]", ["a", "^"], ["b"]),
        (r"[\]a]", ["]", "a"], ["\\", "b"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("[|&~[]", ["|", "&", "~", "["], ["a"]),
        (r"a\*", ["a*"], ["ab", "a", r"a\*"]),
        ("a\\", ["a\\"], ["a"]),
        ("a]", ["a]"], ["a"]),
        ("(a+)$", ["(a+)$"], ["aa"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_table(pattern: str, hits: list[str], misses: list[str]) -> None:
    """Each element of the syntax matches the listed texts and no others."""
    assert [text for text in hits + misses if matches(pattern, text)] == hits


@pytest.mark.parametrize("pattern", ["", "[", "a[b", "a[^", r"[a\]", "[a-]", "x["])
def test_useless_patterns_are_refused(pattern: str) -> None:
    """An empty pattern and an unclosed set are refused."""
    with pytest.raises(ValueError, match="pattern"):
        compile_pattern(pattern)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("pattern", ["*" * 1000 + "b", "*a" * 20 + "*b"], ids=["run", "spread"])
def test_many_stars_answer_at_once(pattern: str) -> None:
    """Matching time is not exponential in the number of stars, because types come from untrusted publishers."""
    assert not matches(pattern, "a" * 200)


@settings(max_examples=examples(150), deadline=None)
@given(literal=st.text(ALPHABET, min_size=1, max_size=8), other=st.text(ALPHABET, min_size=1, max_size=8))
def test_escaped_text_matches_itself_only(literal: str, other: str) -> None:
    """``escape_glob`` makes every character literal."""
    assert matches(escape_glob(literal), literal)
    assert matches(escape_glob(literal), other) == (literal == other)


def generated_patterns() -> list[str]:
    """Return all accepted patterns of up to three characters, and longer random ones."""
    chance = random.Random(20)
    patterns = ["".join(text) for length in (1, 2, 3) for text in itertools.product(ALPHABET, repeat=length)]
    patterns += ["".join(chance.choices(ALPHABET, k=chance.randint(4, 9))) for _ in range(1500)]
    patterns += [f"[{''.join(chance.choices(ALPHABET, k=chance.randint(1, 6)))}]" for _ in range(500)]
    return sorted(pattern for pattern in set(patterns) if accepted(pattern))


def accepted(pattern: str) -> bool:
    try:
        compile_pattern(pattern)
    except ValueError:
        return False
    return True


def heard_by_redis(client: Redis, prefix: str, patterns: list[str], subjects: list[str]) -> set[tuple[str, str]]:
    """Return the pairs of pattern and subject that PSUBSCRIBE delivers."""
    start, heard = Keys(prefix).all_channels[:-1], set()
    with client.pubsub() as pubsub:
        pubsub.psubscribe(*[start + pattern for pattern in patterns])
        for _ in patterns:
            assert pubsub.get_message(timeout=5) is not None
        for subject in subjects:
            for _ in range(client.publish(prefix + subject, "")):  # one delivery for each matching pattern
                message = pubsub.get_message(timeout=5)
                assert message is not None
                pattern, channel = message["pattern"].decode(), message["channel"].decode()
                heard.add((pattern.removeprefix(start), channel.removeprefix(prefix)))
    return heard


@pytest.mark.parametrize("pattern", ["dream.created", "a]b", "^a", "a-c"])
def test_a_literal_matches_itself_only(pattern: str) -> None:
    """Characters with a meaning only inside a set are literal outside of it."""
    assert is_literal(pattern)
    assert compile_pattern(pattern).fullmatch(pattern)
    assert not any(is_literal(other + pattern) for other in ("*", "?", "[a]", "\\"))


def test_same_as_redis(client: Redis, prefix: str) -> None:
    """Our matching agrees with Redis for patterns of all special characters and for every subject."""
    patterns = generated_patterns()
    heard = heard_by_redis(client, prefix, patterns, SUBJECTS)
    ours = {(pattern, subject) for pattern in patterns for subject in SUBJECTS if matches(pattern, subject)}
    assert (len(patterns) > 2000, len(ours) > 4000) == (True, True)
    assert heard - ours == set(), "only Redis matches"
    assert ours - heard == set(), "only ours matches"


def test_prefix_is_literal(client: Redis) -> None:
    """Special characters in a channel prefix are literal in the subscription to all events."""
    for prefix in ("a*:", "a?[b]:", "a\\:", "^-:"):
        pattern = Keys(prefix).all_channels
        with client.pubsub() as pubsub:
            pubsub.psubscribe(pattern)
            assert pubsub.get_message(timeout=5) is not None
            assert client.publish(Keys(prefix).channel("x"), "") == 1
            assert client.publish(Keys("a-b:").channel("x"), "") == 0
