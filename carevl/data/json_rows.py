"""JSON and JSON Lines as a stream of values, one in memory at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from carevl.data.rows import RowError

MAX_ROW_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 18
_SPACE = " \t\r\n"
_LONGEST_TOKEN = 16
"""Characters at the end of a text that may be the beginning of a literal or of an escape."""
_UNDECODED = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as the error handler `surrogateescape` leaves them."""


class LostRowsError(ValueError):
    """A file that breaks off; `rows` is how many rows are lost behind the place, as far as its bytes tell."""

    def __init__(self, message: str, rows: int) -> None:
        super().__init__(message)
        self.rows = rows


class Stream(Protocol):
    """A pyarrow input stream or a binary file."""

    def read(self, nbytes: int, /) -> bytes: ...


def line_values(stream: Stream) -> Iterator[Any]:
    """Yield the value of every line that is not blank; RowError for one that is not JSON, or is over MAX_ROW_BYTES."""
    for line in raw_lines(stream):
        if isinstance(line, RowError):
            yield line
        elif line.strip():
            yield json_value(line, "the line")


def json_value(data: bytes, name: str) -> Any:
    """Return the value of a JSON text, or the RowError of what is not UTF-8 or not JSON, in which it has this name."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as failure:
        return RowError("row", f"{name} {_wrong_byte(data[failure.start], failure.start)}")
    except (ValueError, RecursionError) as failure:
        return RowError("row", f"{name} is not JSON: {failure}")


def not_utf8(text: str) -> str | None:
    """Return what is wrong with a text that was decoded with `surrogateescape`, None where all of it was UTF-8."""
    if text.isascii() or (found := _UNDECODED.search(text)) is None:
        return None
    return f"the row {_wrong_byte(ord(found[0]) - 0xDC00, found.start())}"


def _wrong_byte(byte: int, position: int) -> str:
    return f"is not UTF-8: byte 0x{byte:02x} at {position}; write the file anew as UTF-8"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a name that stands twice in it has no value that could be believed."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, n in Counter(name for name, _ in pairs).items():
            if n > 1:
                values[name] = RowError("format", f"`{name}` stands {n} times in one object")
    return values


def raw_lines(stream: Stream) -> Iterator[bytes | RowError]:
    """Yield the lines without their line feeds; RowError for one over MAX_ROW_BYTES."""
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
    if size:
        yield _joined(parts, size, b"")


def _joined(parts: list[bytes], size: int, last: bytes) -> bytes | RowError:
    if size + len(last) > MAX_ROW_BYTES:
        return RowError("row", f"the line has {size + len(last)} bytes, over the cap of {MAX_ROW_BYTES}")
    return b"".join([*parts, last])


def find_list(stream: Stream, columns: Mapping[str, str]) -> str | None:
    """Return the name of the list whose elements are the rows of a JSON object; None where the object is a row itself.

    Args:
        columns: name of a list to a member that its first element then has.

    Raises:
        ValueError: text that is not JSON, before any such list.
    """
    text = _Text(stream)
    if text.skip(_SPACE) == "{":
        for name, value, is_element in _members(text, _decoder()):
            if is_element and isinstance(value, dict) and columns.get(name) in value:
                return name
    return None


def json_values(stream: Stream, name: str | None = None) -> Iterator[Any]:
    """Yield the elements of a JSON array, or the values of a file with one after another.

    Args:
        name: of a list; of objects its elements are yielded in their place, and a RowError where it has none.

    Raises:
        LostRowsError: text that is not JSON, or one value over MAX_ROW_BYTES; the values before it have been given.
    """
    text = _Text(stream)
    rows = 0
    try:
        for value in _values(text, name):
            yield value
            rows += 1
    except ValueError as failure:
        place = text.position
        rest = text.skip_all()
        lost = max(1, round(rest * rows / place)) if rows else 1
        raise LostRowsError(f"{failure}, in the value at character {place}; {lost} rows or so are lost", lost) from None


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object)


def _values(text: _Text, name: str | None) -> Iterator[Any]:
    decoder = _decoder()
    if text.skip(_SPACE) != "[":
        while mark := text.skip(_SPACE):
            yield from [text.value(decoder)] if name is None or mark != "{" else _listed(text, decoder, name)
        return
    yield from _elements(text, decoder)
    if mark := text.skip(_SPACE):
        raise ValueError(f"expected nothing after the end of the array, found {mark!r}")


def _listed(text: _Text, decoder: json.JSONDecoder, name: str) -> Iterator[Any]:
    """Yield the elements of an object's list."""
    is_empty = True
    for member, value, is_element in _members(text, decoder):
        if is_element and member == name:
            yield value
            is_empty = False
    if is_empty:
        yield RowError("row", f"an object has no list `{name}`, or an empty one")


def _members(text: _Text, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any, bool]]:
    """Yield the name and value of an object's members; of one that is a list its elements, each with True."""
    for _ in _between(text, "}", "a member"):
        name = text.value(decoder)
        if not isinstance(name, str) or text.skip(_SPACE) != ":":
            raise ValueError(f"expected a name and `:`, found {str(name)[:60]!r}")
        text.drop(1)
        if text.skip(_SPACE) != "[":
            yield name, text.value(decoder), False
            continue
        for element in _elements(text, decoder):
            yield name, element, True


def _elements(text: _Text, decoder: json.JSONDecoder) -> Iterator[Any]:
    for _ in _between(text, "]", "an element"):
        yield text.value(decoder)


def _between(text: _Text, end: str, part: str) -> Iterator[None]:
    """Yield at each part of an array or object, from its bracket to its end; the caller reads the part."""
    text.drop(1)
    while (mark := text.skip(_SPACE)) != end:
        if not mark:
            raise ValueError("the file ends inside its array" if end == "]" else "the file ends inside an object")
        yield
        mark = text.skip(_SPACE)
        if mark == ",":
            text.drop(1)
        elif mark and mark != end:
            raise ValueError(f"expected `,` or `{end}` after {part}, found {mark!r}")
    text.drop(1)


class _Text:
    """Decoded text with a window that grows only while one value is incomplete."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text, self._at, self._before = "", 0, 0

    @property
    def position(self) -> int:
        """Characters of the file that have been passed."""
        return self._before + self._at

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

    def skip_all(self) -> int:
        """Move to the end of the file and return how many characters were left."""
        start = self.position
        self._at = len(self._text)
        while self._more(_CHUNK_BYTES):
            self._at = len(self._text)
        return self.position - start

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Decode the next JSON value, a RowError where its text is not UTF-8.

        Each retry reads as much again, so the work is linear in the value's length.
        """
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as failure:
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise ValueError(f"one row is over the cap of {MAX_ROW_BYTES} bytes") from None
                left = self._text[failure.pos :].strip(f"{_SPACE},")
                cut = failure.msg.startswith("Unterminated") or len(left) < _LONGEST_TOKEN
                if not cut or not self._more(max(_CHUNK_BYTES, len(self._text) - self._at)):
                    raise ValueError(failure.msg) from None
                continue
            # A number near the end of the window may go on behind it: 12 of 123 is one too, and so is that of 12e+3.
            if isinstance(value, int | float) and len(self._text) - end < _LONGEST_TOKEN:
                length = end - self._at
                if self._more(_CHUNK_BYTES):
                    continue
                end = self._at + length
            damage = not_utf8(self._text[self._at : end])
            self._at = end
            return value if damage is None else RowError("row", damage)

    def _more(self, nbytes: int) -> bool:
        data = self._stream.read(nbytes)
        self._before += self._at
        self._text, self._at = self._text[self._at :] + self._decode(data, not data), 0
        return bool(data)
