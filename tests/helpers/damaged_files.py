"""Ways to damage a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _delete(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _replace(file: Path) -> None:
    file.write_text("[1, 2, 3]")


def _break(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[9] ^= 0xFF  # in a file of weights: of its header
    file.write_bytes(bytes(data))


WAYS: dict[str, Callable[[Path], None]] = {
    "deleted": _delete,
    "emptied": _empty,
    "cut": _cut,
    "of other contents": _replace,
    "flipped": _break,
}
