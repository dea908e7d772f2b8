"""What an error of Redis means for the program: whether it ends by waiting, and which kind of refusal it is.

Redis names the kind of an error by the first word of its reply. redis-py removes that word if it has a class for it. In
front of it, redis-py's pipelines write the command, EXEC the outcome, and Redis 6.2 the place in a script.
"""

from __future__ import annotations

import re

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_BEFORE_CODE = r"(?:^|: -?)"
#: Classes of errors that may end without intervention. MASTERDOWN and LOADING are subclasses of them.
_HEALING = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    ClusterDownError,
    TryAgainError,
    OutOfMemoryError,
    NoScriptError,  # the server lost its scripts between two commands of a pipeline
)
#: Subclasses of ConnectionError that do not end by waiting.
_PERMANENT = (AuthenticationError, AuthorizationError)
#: The same for errors without such a class. Where redis-py has one, the word is left in errors of scripts and of EXEC.
_HEALING_TEXT = re.compile(
    _BEFORE_CODE + r"(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|NOSCRIPT|OOM|READONLY|TRYAGAIN) "
    # Of the same situations, as Redis describes them inside a script, and of a server without a free connection
    "|the cluster is down|on a stale replica|slot not served|rehashing of the slot|max number of clients"
    # A subscriber repairs a journal with the last possible id
    "|exhausted the last possible ID"
    # A blocking command was ended by a failover, not because its stream was deleted
    "|UNBLOCKED force unblock"
)
_WRONG_TYPE = re.compile(_BEFORE_CODE + "WRONGTYPE ")


def heals_by_waiting(error: object) -> bool:
    """Whether *error*, or a reply of a pipeline, is an error that may end without intervention.

    This is so during a restart, a failover or a long script, and while connections, memory, disk or replicas are short.
    Other errors need an operator, such as a missing permission or a key that holds another type of value.
    """
    if not isinstance(error, RedisError) or isinstance(error, _PERMANENT):
        return False
    return isinstance(error, _HEALING) or _HEALING_TEXT.search(str(error)) is not None


def is_wrong_type(error: object) -> bool:
    """Whether *error*, or a reply of a pipeline, reports that a key holds another type of value than was expected."""
    return isinstance(error, ResponseError) and _WRONG_TYPE.search(str(error)) is not None
