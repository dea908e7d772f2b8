"""Errors of Redis: which of them end by waiting, wherever redis-py or the server put the word that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis._parsers.base import BaseParser
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bridge import BridgeSettings
from bridge.errors import BusUnavailable
from bridge.redis.error_codes import heals_by_waiting, is_wrong_type
from bridge.redis.retry import attempt
from bridge.testing.redis_server import RedisServer
from tests.support.replies import HEALING, PERMANENT

#: Of a script.
SHA = "a8e045687019c1230c01d4717e0579b12b1a1b50"
#: Where a server puts the text of an error.
PLACES: dict[str, Callable[[str], str]] = {
    "command": lambda text: text,
    "script of 7.0": lambda text: f"{text} script: {SHA}, on @user_script:7.",
    "script of 6.2": lambda text: (
        f"ERR Error running script (call to f_{SHA}): @user_script:7: @user_script: 7: -{text}"
    ),
    "exec": lambda text: f"EXECABORT Transaction discarded because of: {text}",
}


def parsed(reply: str, *, pipeline: bool) -> Exception:
    """Return what redis-py makes of an error, alone or in a pipeline."""
    error: Exception = BaseParser.parse_error(reply)
    if pipeline:
        Redis().pipeline().annotate_exception(error, 1, ("EVALSHA", SHA, 3, "{x:}dead:g"))
    return error


@pytest.mark.parametrize("pipeline", [False, True], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize("place", PLACES)
def test_errors_that_end_by_waiting(place: str, pipeline: bool) -> None:
    """Each prefix of Redis is recognised as a command, a script, EXEC and a pipeline return it."""
    healing = {prefix: heals_by_waiting(parsed(PLACES[place](text), pipeline=pipeline)) for prefix, text in HEALING}
    permanent = {prefix: heals_by_waiting(parsed(PLACES[place](text), pipeline=pipeline)) for prefix, text in PERMANENT}
    assert (set(healing.values()), set(permanent.values())) == ({True}, {False}), (healing, permanent)


def test_errors_without_a_reply() -> None:
    """A lost connection ends by waiting, a wrong password does not; what is no error of Redis is not an error."""
    assert heals_by_waiting(RedisConnectionError("Connection reset by peer"))
    assert heals_by_waiting(RedisTimeoutError("Timeout reading from socket"))
    assert not heals_by_waiting(AuthenticationError("invalid username-password pair or user is disabled."))
    assert not heals_by_waiting(b"OOM of a value")
    assert not heals_by_waiting(KeyError("BUSY "))


@pytest.mark.parametrize("pipeline", [False, True], ids=["alone", "in a pipeline"])
def test_a_wrong_type_is_recognised(pipeline: bool) -> None:
    """Wherever the error comes from."""
    text = dict(PERMANENT)["WRONGTYPE"]
    assert all(is_wrong_type(parsed(place(text), pipeline=pipeline)) for place in PLACES.values())
    assert not any(is_wrong_type(parsed(text, pipeline=pipeline)) for _, text in HEALING)


def test_errors_of_a_server(own_server: RedisServer) -> None:
    """A real server without memory, without replicas, and with a key of another type."""
    script = "redis.call('GET', KEYS[1]) return redis.call('SET', KEYS[2], 1)"

    def error_of(client: Redis) -> RedisError:
        with client.pipeline(transaction=False) as pipe:
            pipe.eval(script, 2, "a", "b")
            with pytest.raises(RedisError) as caught:
                pipe.execute()
        return caught.value

    with Redis.from_url(own_server.url) as client:
        for setting in ("maxmemory", "min-replicas-to-write"):
            client.config_set(setting, 1)
            assert heals_by_waiting(error_of(client)), setting
            client.config_set(setting, 0)
        client.lpush("a", 1)
        error = error_of(client)
    assert is_wrong_type(error)
    assert not heals_by_waiting(error)


@pytest.mark.parametrize(("prefix", "text"), [*HEALING, *PERMANENT], ids=lambda value: value.partition(" ")[0])
def test_only_what_may_heal_is_attempted_again(settings: BridgeSettings, prefix: str, text: str) -> None:
    """A limited number of times; other errors are reported at once, and the report names the error."""
    tries: list[int] = []

    def do() -> Any:
        tries.append(1)
        raise parsed(text, pipeline=False)

    with pytest.raises(BusUnavailable, match="tests failed"):
        attempt(settings.model_copy(update={"publish_timeout_s": 0.3}), "tests", do)
    assert (len(tries) > 1) == ((prefix, text) in HEALING)
