"""Reads the lines of an input as they arrive, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

#: Most bytes per read; a pipe returns those that are available.
_CHUNK = 64 * 1024


class Line(NamedTuple):
    """One line, numbered from 1, without its line break; the text of a line that is *too_long* is empty."""

    number: int
    text: bytes
    too_long: bool = False


class Lines:
    """The lines of *stream* that are not blank, each at most *max_bytes* long."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._number = 0
        #: Bytes read so far.
        self.size = 0

    def arriving(self) -> Iterator[list[Line]]:
        """Yield the complete lines that have arrived, without waiting for further ones."""
        rest, cut = b"", False  # the start of a line, and whether it was too long to keep
        read = getattr(self._stream, "read1", self._stream.read)
        while chunk := read(_CHUNK):
            self.size += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            lines = []
            for text in whole:
                lines.append(self._line(text, cut))
                cut = False
            if len(rest) > self._max_bytes:
                rest, cut = b"", True
            yield [line for line in lines if line.text or line.too_long]
        if rest or cut:
            last = self._line(rest, cut)
            yield [last] if last.text or last.too_long else []

    def _line(self, text: bytes, cut: bool) -> Line:
        self._number += 1
        if cut or len(text) > self._max_bytes:
            return Line(self._number, b"", too_long=True)
        return Line(self._number, text.strip())
