"""The proxy of the tests does what it says."""

from __future__ import annotations

import hashlib
import json

import pytest
from redis import Redis
from redis.exceptions import RedisError

from bridge.testing.redis_server import RedisServer
from tests.support.proxy import Proxy


def test_the_proxy_itself(proxy: Proxy, server: RedisServer) -> None:
    """Each fault of the proxy has its described effect, where applicable only once, and ``heal()`` ends it."""
    with Redis.from_url(proxy.url, socket_timeout=0.5) as through, Redis.from_url(server.url) as direct:
        key = f"proxy:{hashlib.sha1(json.dumps(proxy.port).encode()).hexdigest()}"
        assert through.incr(key) == 1
        for fault, what, arrives in (
            (lambda: proxy.drop_reply(b"INCR"), "reply dropped", 1),
            (lambda: proxy.hold_request(b"INCR"), "request held", 0),
            (lambda: proxy.cut_after(b"INCR", 5), "request cut", 0),
        ):
            before = int(direct.get(key))
            fault()
            with pytest.raises(RedisError):
                through.execute_command("INCR", key)
            assert int(direct.get(key)) == before + arrives
            assert proxy.done[what] == 1
            assert through.incr(key) == before + arrives + 1
        direct.delete(key)
