"""Removes sensitive values of an event from errors and log lines that quote it, see ``events.redaction``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Reject, Retry

from bridge.errors import InvalidEvent, RedactedError
from bridge.events import REDACTED, Redaction

Clean = Callable[[str], str]

#: How ``celery.worker`` quotes up to 1 kB of the body of a message that it cannot decode.
_BODY = re.compile(r".*( \(\d+b\))", re.DOTALL)
#: Loggers of Celery that quote message bodies: of messages that cannot be decoded and, at DEBUG, of all.
_LOGGERS = ("celery.worker.consumer.consumer", "celery.pool")


@contextmanager
def redacting_errors(redaction: Redaction, fields: dict[str, Any]) -> Iterator[None]:
    """Remove the sensitive values of an event from any error that leaves the block.

    An error that quotes such a value keeps its type if its arguments can be changed. Otherwise it is replaced by a
    :class:`RedactedError` that names its type. Other errors stay as they are.

    Arguments:
        fields: The event as JSON types.
    """
    try:
        yield
    except BaseException as error:
        values = redaction.values(fields)
        if not values:
            raise
        redacted = _redacted(error, lambda text: redaction.text(text, values), set())
        if redacted is error:
            raise
        raise redacted from redacted.__cause__


def _redacted(error: BaseException, clean: Clean, seen: set[int]) -> BaseException:
    """Return *error* without sensitive values in it, its causes and its notes: changed in place, or replaced."""
    if id(error) in seen:
        return error
    seen.add(id(error))
    # A traceback shows cause and context too. Setting the cause also sets __suppress_context__.
    suppress = error.__suppress_context__
    if error.__cause__ is not None:
        error.__cause__ = _redacted(error.__cause__, clean, seen)
    if error.__context__ is not None:
        error.__context__ = _redacted(error.__context__, clean, seen)
    error.__suppress_context__ = suppress
    if notes := getattr(error, "__notes__", None):
        error.__notes__ = [clean(str(note)) for note in notes]
    if isinstance(error, Retry):
        _clean_retry(error, clean, seen)
        return error
    if isinstance(error, Reject):
        _clean_reject(error, clean)
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    replaced = [
        one for one in inner if _redacted(one, clean, seen) is not one
    ]  # the errors of a group cannot be replaced
    if not replaced and _is_clean(error, clean):
        return error
    if isinstance(error, InvalidEvent):
        other: BaseException = InvalidEvent(error.reason, clean(error.field), clean(error.detail))
    else:
        error.args = tuple(_cleaned(one, clean) for one in error.args)
        if not replaced and _is_clean(error, clean):
            return error
        other = RedactedError(f"{type(error).__name__}: {clean(str(error))}")
    other.__cause__, other.__context__, other.__suppress_context__ = error.__cause__, error.__context__, suppress
    return other.with_traceback(error.__traceback__)


def _clean_retry(error: Any, clean: Clean, seen: set[int]) -> None:
    # Celery stores and logs these attributes. The arguments of a Retry hold the error itself.
    error.message = error.message and clean(str(error.message))
    error.exc = error.exc and _redacted(error.exc, clean, seen)
    error.excs = error.excs and clean(str(error.excs))


def _clean_reject(error: Any, clean: Clean) -> None:
    error.reason = _cleaned(error.reason, clean)
    error.args = (error.reason, error.requeue)


def _is_clean(error: BaseException, clean: Clean) -> bool:
    return all(clean(text) == text for text in (str(error), repr(error)))


def _cleaned(value: Any, clean: Clean) -> Any:
    if isinstance(value, str):
        return clean(value)
    text = repr(value)
    return value if clean(text) == text else REDACTED


def redact_worker_logs(handlers: Sequence[Any]) -> None:
    """Keep results of handlers and bodies of messages out of the logs of Celery, and out of Flower.

    Call it before the pool starts.

    Arguments:
        handlers: The tasks of the handlers.
    """
    for task in handlers:
        task.resultrepr_maxsize = -1  # shows nothing of the result; 0 would show all
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutBodies) for one in logger.filters):
            logger.addFilter(_WithoutBodies())


class _WithoutBodies(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            if record.name == "celery.pool":
                record.args = (*record.args[:1], *(REDACTED for _ in record.args[1:]))
            else:
                record.args = tuple(_without_body(one) for one in record.args)
        return True


def _without_body(value: Any) -> Any:
    return _BODY.sub(rf"{REDACTED}\1", value) if isinstance(value, str) and _BODY.fullmatch(value) else value
