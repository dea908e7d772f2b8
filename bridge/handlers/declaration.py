"""Whether two uses of ``@on_event`` in one place are the same one, in a module that was imported twice."""

from __future__ import annotations

import sys
from functools import partial
from types import FunctionType
from typing import Any

#: Levels of values that are compared: functions may refer to each other.
_DEPTH = 20


def is_same(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether *one* and *other* are made by the same code from the same values.

    A module that is imported again, as by ``importlib.reload()``, makes new functions and classes from the same code.
    A loop or a factory makes functions that differ in their arguments, defaults or closures.
    """
    if one is other:
        return True
    if type(one) is not type(other) or depth == 0:
        return False
    if isinstance(one, FunctionType):
        return one.__code__ == other.__code__ and is_same(_bound(one), _bound(other), depth - 1)
    if isinstance(one, type):
        return (one.__qualname__, _file(one)) == (other.__qualname__, _file(other))
    if isinstance(one, partial):
        return is_same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords), depth - 1)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name], depth - 1) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(is_same(*pair, depth - 1) for pair in zip(one, other, strict=True))
    return bool(one == other)


def _bound(function: Any) -> list[Any]:
    """Return the values that a function got when it was made."""
    cells = [_content(cell) for cell in function.__closure__ or () if _content(cell) is not function]
    return [function.__defaults__, function.__kwdefaults__, getattr(function, "__wrapped__", None), *cells]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _file(made: type[Any]) -> str:
    """Return the file that defines a class; its module may have several names."""
    return str(getattr(sys.modules.get(made.__module__), "__file__", made.__module__))
