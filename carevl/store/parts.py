"""Parts on disk: Parquet files that show whether they are what was written.

Pages carry checksums, which every read verifies. A seal between the last page and the footer, where readers of Parquet
do not look, holds the SHA-256 of all other bytes, so that a flipped bit in the footer or in a page's header is noticed
as well. Parts of an earlier version have neither and are read as they are.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.store.damage import DamagedError

_MARK = b"carevl-seal-1:"
_SEAL = len(_MARK) + hashlib.sha256().digest_size
_END = 8
"""Bytes behind the footer: its length, and Parquet's magic."""
_BLOCK = 1 << 20


def encode_part(rows: pa.Table) -> bytes:
    """Return rows as the sealed Parquet file of a part."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    data = memoryview(sink.getvalue())
    footer = len(data) - _END - int.from_bytes(data[-_END : -_END + 4], "little")
    return b"".join([data[:footer], _MARK, hashlib.sha256(data).digest(), data[footer:]])


def hash_rows(rows: pa.Table) -> bytes:
    """Return a SHA-256 of the values of rows and their types, however they are stored."""
    digest = hashlib.sha256()
    with pa.ipc.new_stream(pa.PythonFile(_Hashing(digest), "w"), rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    return digest.digest()


class _Hashing(io.RawIOBase):
    """A file that keeps nothing of what is written to it but a hash."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self.digest, self.size = digest, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def read_part(file: Path, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a part.

    Args:
        columns: only these, as far as it has them; all when None.

    Raises:
        DamagedError: it is missing, or not what was written.
        OSError: the system does not let it be read.
    """
    with _damage_named(file):
        _check(str(file), *_identity(file))
        return pq.ParquetFile(file, page_checksum_verification=True).read(columns)


def read_names(file: Path) -> list[str]:
    """Return the names of a part's columns; errors as for `read_part`."""
    with _damage_named(file):
        return list(pq.read_schema(file).names)


def count_rows(file: Path) -> int:
    """Return the rows of a part; errors as for `read_part`."""
    with _damage_named(file):
        return int(pq.read_metadata(file).num_rows)


def read_seal(file: Path) -> str | None:
    """Return the SHA-256 of a part when it was written, of all bytes but its seal; None where it has no seal.

    Raises:
        DamagedError: it is missing, or no whole Parquet file.
    """
    with _damage_named(file), file.open("rb") as stream:
        seal = _find_seal(stream, file.stat().st_size)
        return None if seal is None else seal[1].hex()


def check_part(file: Path) -> None:
    """Compare all bytes of a part with its seal; without one, read all its pages.

    Raises:
        DamagedError: it is missing, or not what was written.
    """
    with _damage_named(file):
        if not _check(str(file), *_identity(file)):
            pq.ParquetFile(file, page_checksum_verification=True).read()


def _identity(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _check(file: str, inode: int, size: int, mtime_ns: int) -> bool:
    """Compare a file with its seal, once in a process; return whether it has one.

    Raises:
        DamagedError: they do not agree.
    """
    del inode, mtime_ns
    with open(file, "rb") as stream:
        seal = _find_seal(stream, size)
        if seal is None:
            return False
        footer, expected = seal
        stream.seek(0)
        digest, left = hashlib.sha256(), footer - _SEAL
        while left:
            block = stream.read(min(left, _BLOCK))
            digest.update(block)
            left -= len(block)
        stream.seek(footer)
        digest.update(stream.read())
    if digest.digest() != expected:
        raise DamagedError(Path(file), "is damaged: its checksum does not fit")
    return True


def _find_seal(stream: BinaryIO, size: int) -> tuple[int, bytes] | None:
    """Return where the footer of a Parquet file begins and the digest before it; None where no seal is.

    Raises:
        ValueError: the file does not end as Parquet files do.
    """
    if size < _END + 4:
        raise ValueError(f"it has {size} bytes, too few for Parquet")
    stream.seek(size - _END)
    end = stream.read(_END)
    footer = size - _END - int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or footer < 4:
        raise ValueError("it does not end as Parquet does")
    if footer < _SEAL:
        return None
    stream.seek(footer - _SEAL)
    seal = stream.read(_SEAL)
    return (footer, seal[len(_MARK) :]) if seal.startswith(_MARK) else None


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turn what a damaged file makes Parquet raise into one error; what the system refuses stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise DamagedError(file, "is missing") from None
    except MemoryError:
        raise
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(file)) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(file, f"is damaged: {reason}") from error
