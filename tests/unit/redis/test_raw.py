"""Raw connections: commands and their replies in two steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from bridge.redis.raw import RawConnection


@pytest.fixture
def connection(client: Redis) -> Iterator[RawConnection]:
    opened = RawConnection(client)
    yield opened
    opened.close()


def test_replies_come_in_the_order_of_commands(connection: RawConnection, prefix: str) -> None:
    """Arguments may be bytes, text or numbers of any size; an error concerns its command only."""
    large = b"\r\n\x00" * 100_000
    connection.send([("SET", f"{prefix}a", large), ("LLEN", f"{prefix}a"), ("GET", f"{prefix}a"), ("ECHO", 12)])
    assert connection.reply() == b"OK"
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        connection.reply()
    assert (connection.reply(), connection.reply()) == (large, b"12")


def test_the_replies_of_a_transaction(connection: RawConnection, client: Redis, prefix: str) -> None:
    """They come together; None if a watched key has changed; an error is raised, and what was sent next still works."""
    key = f"{prefix}n"
    transaction = [("WATCH", key), ("MULTI",), ("INCR", key), ("INCR", key), ("EXEC",)]
    connection.send(transaction)
    connection.reply()
    assert connection.transaction_replies(2) == [1, 2]
    connection.send(transaction[:1])
    connection.reply()
    client.set(key, "x")
    connection.send(transaction[1:])
    assert connection.transaction_replies(2) is None
    connection.send([*transaction[1:], ("ECHO", "next")])
    with pytest.raises(ResponseError, match="not an integer"):
        connection.transaction_replies(2)
    assert connection.reply() == b"next"


def test_a_closed_connection_returns_to_the_pool(client: Redis) -> None:
    """Replies that were due do not reach the next user of the connection."""
    connection = RawConnection(client)
    connection.send([("ECHO", "late")])
    connection.close()
    assert client.echo("mine") == b"mine"
