"""JSON and JSON Lines as a stream of values, one in memory at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, Protocol

from carevl.data.rows import RowError

MAX_ROW_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 18
_SPACE = " \t\r\n"


class Stream(Protocol):
    """A pyarrow input stream or a binary file."""

    def read(self, nbytes: int, /) -> bytes: ...


def line_values(stream: Stream) -> Iterator[Any]:
    """Yield the value of every line that is not blank; RowError for one that is not JSON, or is over MAX_ROW_BYTES."""
    for line in _lines(stream):
        if isinstance(line, RowError):
            yield line
        elif line.strip():
            try:
                yield json.loads(line.decode("utf-8-sig", "replace"))
            except (ValueError, RecursionError) as failure:
                yield RowError("row", f"the line is not JSON: {failure}")


def _lines(stream: Stream) -> Iterator[bytes | RowError]:
    # A line over the cap is counted on but no longer kept: a file without line breaks must not fill the memory.
    parts: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK_BYTES):
        first, *rest = chunk.split(b"\n")
        for piece in (first, *rest[:-1]) if rest else ():
            yield _joined(parts, size, piece)
            parts, size = [], 0
        tail = rest[-1] if rest else first
        size += len(tail)
        if size <= MAX_ROW_BYTES:
            parts.append(tail)
        else:
            parts = []
    yield _joined(parts, size, b"")


def _joined(parts: list[bytes], size: int, last: bytes) -> bytes | RowError:
    if size + len(last) > MAX_ROW_BYTES:
        return RowError("row", f"the line has {size + len(last)} bytes, over the cap of {MAX_ROW_BYTES}")
    return b"".join([*parts, last])


def json_values(stream: Stream) -> Iterator[Any]:
    """Yield the elements of a JSON array, or the values of a file with one after another.

    Raises:
        ValueError: text that is not JSON, or one value over MAX_ROW_BYTES; the values before it have been given.
    """
    text = _Text(stream)
    decoder = json.JSONDecoder()
    array = text.skip(_SPACE) == "["
    if array:
        text.drop(1)
        if text.skip(_SPACE) == "]":
            return
    while text.skip(_SPACE):
        yield text.value(decoder)
        if not array:
            continue
        mark = text.skip(_SPACE)
        if mark == "]":
            return
        if mark != ",":
            raise ValueError(f"expected `,` or `]` after an element, found {mark!r}")
        text.drop(1)
    if array:
        raise ValueError("the file ends inside its array")


class _Text:
    """Decoded text with a window that grows only while one value is incomplete."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._text, self._at = "", 0

    def skip(self, characters: str) -> str:
        """Move past these characters and return the next one, empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in characters:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK_BYTES):
                return ""

    def drop(self, count: int) -> None:
        self._at += count

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Decode the next JSON value. Each retry reads as much again, so the work is linear in the value's length."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise ValueError(f"one row is over the cap of {MAX_ROW_BYTES} bytes") from None
                if not self._more(max(_CHUNK_BYTES, len(self._text) - self._at)):
                    raise
                continue
            # A value that ends with the window may go on behind it: 12 of 123 is a number too.
            if end == len(self._text) and self._more(_CHUNK_BYTES):
                continue
            self._at = end
            return value

    def _more(self, nbytes: int) -> bool:
        data = self._stream.read(nbytes)
        self._text, self._at = self._text[self._at :] + self._decode(data, not data), 0
        return bool(data)
