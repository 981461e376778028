"""Run directories: where results lie, what made them, and whether they are whole.

```
RUN/settings.yaml · RUN/STAGE/FINGERPRINT/{part-00000.parquet, …, manifest.json} · RUN/judge/ · RUN/results.json
```

A result is named by the fingerprint of everything that it depends on. A part appears by atomic rename, the manifest
last: a directory without one is unfinished, and the parts that it has need not be made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from carevl.errors import UserError

MANIFEST = "manifest.json"


class RunError(UserError):
    """A run that cannot begin or go on."""


@dataclass(frozen=True)
class Cause:
    """Everything that a stage's result depends on.

    `facts` is a JSON-able tree: the stage's version, the settings that matter to it, the fingerprints of its inputs
    and of the weights, prompts and templates that it uses.
    """

    stage: str
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of stage and facts."""
        text = json.dumps([self.stage, self.facts], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two trees of facts, one line per leaf: `caption.prompt: 'a' -> 'b'`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_atomically(file: Path, data: bytes) -> None:
    """Writes a file that other processes see whole or not at all, and that survives a crash of the machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
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
        """The file of a part, there or not."""
        return self.directory / f"part-{number:05d}.parquet"

    def parts(self) -> list[int]:
        """Numbers of the parts that are there."""
        return sorted(int(file.stem.removeprefix("part-")) for file in self.directory.glob("part-*.parquet"))

    def write(self, number: int, rows: pa.Table) -> None:
        """Commits a part."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        write_atomically(self.part(number), sink.getvalue().to_pybytes())

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """One part, or all of them in order."""
        numbers = self.parts() if number is None else [number]
        return pa.concat_tables([pq.ParquetFile(self.part(n)).read(columns) for n in numbers])

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the manifest says, or None while the table is unfinished."""
        file = self.directory / MANIFEST
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Declares the table whole."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
        write_atomically(self.directory / MANIFEST, text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Run:
    """A run directory."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> Run:
        """The run directory at a path, which means the same on every node.

        Raises:
            RunError: the path names a bucket.
        """
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            raise RunError(
                f"{path}: a run directory is on a file system that every node mounts, since parts are committed by "
                "renaming files; only sources may lie in a bucket"
            )
        return cls(path.absolute())

    @property
    def settings(self) -> Path:
        """The settings of the last run here, a file for `config.load`."""
        return self.root / "settings.yaml"

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings of a run."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_atomically(self.settings, text.encode("utf-8", "surrogatepass"))

    def table(self, cause: Cause) -> Table:
        """The table that a cause names, finished or not."""
        return Table(self.root / cause.stage / cause.fingerprint)

    def version(self, cause: Cause) -> str:
        """What names a table's contents: the fingerprint, and how often failed rows of it were tried again."""
        retried = (self.table(cause).manifest or {}).get("retried", 0)
        return f"{cause.fingerprint}+{retried}" if retried else cause.fingerprint

    def latest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of the stage's last finished table, None when there is none."""
        files = sorted(self.root.glob(f"{stage}/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime_ns)
        return json.loads(files[-1].read_text()) if files else None

    def action(self, cause: Cause) -> tuple[str, str]:
        """What a run has to do for a stage, and why: (`skip` | `resume` | `run` | `recompute`, reason)."""
        table = self.table(cause)
        if table.manifest is not None:
            return "skip", "nothing it depends on has changed"
        if parts := table.parts():
            return "resume", f"{len(parts)} parts are there"
        last = self.latest(cause.stage)
        if last is None:
            return "run", "never run"
        return "recompute", "; ".join(differences(last["cause"], dict(cause.facts)))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run directory for this process.

        Raises:
            RunError: another process holds it, or the directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            stream = (self.root / "run.lock").open("a+")
        except OSError as error:
            raise RunError(f"cannot write to the run directory {self.root}: {error.strerror}") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise RunError(f"{self.root} is in use by {holder}; wait for it, or choose another --run-dir") from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            yield
