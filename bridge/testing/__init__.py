"""A throw-away redis-server for tests and development. Its folder is removed when it stops."""

from bridge.testing.redis_server import running_redis

__all__ = ["running_redis"]
