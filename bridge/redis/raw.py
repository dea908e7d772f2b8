"""A connection on which commands are sent in one step and their replies read in another.

The server works on them meanwhile, and so does the caller. redis-py's pipelines wait for the replies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis

#: A command and its arguments, without their encoding.
Command = tuple[Any, ...]


class RawConnection:
    """A connection of a client's pool, used by one thread until it is closed. The caller knows which replies are due.

    Arguments:
        client: Whose pool it is taken from.

    Raises:
        RedisError: Redis does not answer.
    """

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()  # redis-py has no types for single replies

    def send(self, commands: Iterable[Command]) -> None:
        """Send *commands*.

        Raises:
            RedisError: The connection is lost; some of the commands may be executed.
        """
        self._connection.send_packed_command([b"".join(_encoded(command)) for command in commands])

    def reply(self) -> Any:
        """Wait for the next reply and return it.

        Raises:
            RedisError: The reply is an error, or the connection is lost.
        """
        reply = self._connection.read_response()
        if isinstance(reply, Exception):
            raise reply  # redis-py 7 returns some errors, such as LOADING
        return reply

    def transaction_replies(self, commands: int) -> list[Any] | None:
        """Wait for the replies to MULTI, so many *commands* and EXEC.

        Returns:
            The reply to each command; None if a watched key has changed, so that none was executed.

        Raises:
            RedisError: A reply is an error. If it is not that of EXEC, the other commands were executed all the same.
        """
        for _ in range(1 + commands):  # OK, and QUEUED for each command
            self.reply()
        replies: list[Any] | None = self.reply()
        for reply in replies or ():
            if isinstance(reply, Exception):
                raise reply
        return replies

    def close(self) -> None:
        """Close the connection; replies that are still due are lost."""
        self._connection.disconnect()
        self._pool.release(self._connection)


def _encoded(command: Command) -> list[bytes]:
    """Return a command in the protocol of Redis, in pieces: hiredis copies large arguments, which takes far longer."""
    pieces = [b"*%d" % len(command)]
    for argument in command:
        data = argument if type(argument) is bytes else str(argument).encode()
        pieces += (b"\r\n$%d\r\n" % len(data), data)
    pieces.append(b"\r\n")
    return pieces
