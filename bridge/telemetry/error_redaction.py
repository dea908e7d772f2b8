"""Errors and lines of a log that quote an event, without what is sensitive in it, see redaction.py."""

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

#: ``celery.worker`` shows the body of a message that it does not understand like this, up to 1 kB of it.
_BODY = re.compile(r".*( \(\d+b\))", re.DOTALL)
#: Loggers of Celery that show bodies: of what is not understood, and, at DEBUG, of all.
_LOGGERS = ("celery.worker.consumer.consumer", "celery.pool")


@contextmanager
def redacting_errors(redaction: Redaction, fields: dict[str, Any]) -> Iterator[None]:
    """Let no error leave the block that quotes what is sensitive in an event, given as JSON types.

    An error keeps its type where its arguments can be changed, and is a :class:`RedactedError` that names it otherwise.
    What quotes nothing stays as it is.
    """
    try:
        yield
    except BaseException as error:
        values = redaction.values(fields)
        if not values:
            raise
        concealed = _concealed(error, lambda text: redaction.text(text, values), set())
        if concealed is error:
            raise
        raise concealed from concealed.__cause__


def _concealed(error: BaseException, clean: Clean, seen: set[int]) -> BaseException:
    """Return *error*, with all that it comes from, changed or replaced so that it quotes nothing."""
    if id(error) in seen:
        return error
    seen.add(id(error))
    # A traceback shows these as well.
    suppress = error.__suppress_context__
    error.__cause__, error.__context__ = (
        None if one is None else _concealed(one, clean, seen) for one in (error.__cause__, error.__context__)
    )
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
    replaced = [one for one in inner if _concealed(one, clean, seen) is not one]  # a group cannot have others
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
    # Celery stores and logs these; its own arguments hold the error itself.
    error.message = error.message and clean(str(error.message))
    error.exc = error.exc and _concealed(error.exc, clean, seen)
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
    """Let neither Celery nor, through it, Flower show what handlers return, and what messages hold.

    Arguments:
        handlers: Their tasks; before the pool starts.
    """
    for task in handlers:
        task.resultrepr_maxsize = -1  # nothing of it; 0 would be all
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
