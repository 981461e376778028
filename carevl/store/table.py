"""Tables on disk: numbered parts, each committed by atomic rename, and the manifest that declares them whole."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "manifest.json"


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all, and that survives a crash of the machine.

    Raises:
        OSError: it cannot be written, for example because the disk is full; what was there stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class Table:
    """A stage's rows on disk, in numbered parts.

    The parts of a table are the parts of the table that it was made from: part 7 of `captions` holds the captions of
    part 7 of `images`. They are the unit of work, of commit and of resume.
    """

    directory: Path

    def part(self, number: int) -> Path:
        """Return the file of a part, there or not."""
        return self.directory / f"part-{number:05d}.parquet"

    def parts(self) -> list[int]:
        """Return numbers of the parts that are there."""
        return sorted(int(file.stem.removeprefix("part-")) for file in self.directory.glob("part-*.parquet"))

    def write(self, number: int, rows: pa.Table) -> bytes:
        """Commit a part; return what was written."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        data: bytes = sink.getvalue().to_pybytes()
        write_atomically(self.part(number), data)
        return data

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return one part, or all of them in order; whole numbers that an earlier version wrote join later floats."""
        numbers = self.parts() if number is None else [number]
        parts = [pq.ParquetFile(self.part(n)).read(columns) for n in numbers]
        return pa.concat_tables(parts, promote_options="permissive")

    def errors(self, *stages: str) -> Counter[tuple[str, str]]:
        """Return rows with an error, here and in tables below, by kind and one message of that kind.

        Args:
            stages: counts the rows that failed in these; all when there are none.
        """
        kinds: Counter[str] = Counter()
        messages: dict[str, str] = {}
        for file in sorted(self.directory.rglob("part-*.parquet")):
            names = pq.read_schema(file).names
            if "error" not in names:
                continue
            columns = ["error", *(["sources"] if "sources" in names else [])]
            for row in pq.ParquetFile(file).read(columns).to_pylist():
                error = row["error"]
                if isinstance(error, dict) and (not stages or error["stage"] in stages):
                    kinds[error["kind"]] += 1
                    place = f"{row['sources'][0]['locator']}: " if row.get("sources") else ""
                    messages.setdefault(error["kind"], f"{place}{error['message']}")
        return Counter({(kind, messages[kind]): n for kind, n in kinds.items()})

    def problems(self, most: int) -> list[str]:
        """Return the kinds of error that most rows have, in words."""
        return [f"{n} x {kind}, such as: {message}" for (kind, message), n in self.errors().most_common(most)]

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the manifest says, or None while the table is unfinished."""
        file = self.directory / MANIFEST
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Declare the table whole."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
        write_atomically(self.directory / MANIFEST, text.encode("utf-8", "surrogatepass"))
