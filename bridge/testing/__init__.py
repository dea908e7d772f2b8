"""A temporary redis-server for tests and development. Its directory is deleted when it stops."""

from bridge.testing.redis_server import RedisServer

__all__ = ["RedisServer"]
