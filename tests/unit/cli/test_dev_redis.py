"""Which Redis ``bus dev`` uses."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge import BridgeSettings
from bridge.cli.dev_redis import redis_for
from bridge.testing import RedisServer
from tests.support.ports import free_port


def test_a_missing_redis_of_this_machine_is_started_in_its_place() -> None:
    """Other terminals reach the temporary server without being given an address, and it ends with the command."""
    url = f"redis://localhost:{free_port()}/3"
    with Redis.from_url(url) as client:
        with redis_for(BridgeSettings.load(redis_url=url)) as redis:
            assert client.ping()
            assert (redis.url, redis.is_of_application) == (url, True)
            assert "deleted with its data" in redis.description
        with pytest.raises(RedisConnectionError):
            client.ping()


def test_a_running_redis_of_this_machine_is_used(server: RedisServer) -> None:
    """It is neither replaced nor stopped."""
    with redis_for(BridgeSettings.load(redis_url=server.url)) as redis:
        assert (redis.url, redis.is_of_application) == (server.url, True)
    with Redis.from_url(server.url) as client:
        assert client.ping()


@pytest.mark.parametrize(
    "url", ["redis://redis.internal:6379/0", "redis://:secret@localhost:1/0", "redis+cluster://localhost:1"]
)
def test_another_redis_is_not_touched_unless_the_environment_names_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Development does not work on the events of production: a temporary server takes the place of its Redis."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    with redis_for(BridgeSettings.load(redis_url=url)) as redis:
        assert not redis.is_of_application
        with Redis.from_url(redis.url) as client:
            assert client.ping()
    monkeypatch.setenv("REDIS_URL", url)
    with redis_for(BridgeSettings.load()) as redis:
        assert (redis.url, redis.is_of_application) == (url, True)
        assert "secret" not in redis.description
