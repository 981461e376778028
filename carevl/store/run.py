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
from collections import Counter
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


def _version(fingerprint: str, manifest: Mapping[str, Any]) -> str:
    if "same_as" in manifest:
        return str(manifest["same_as"])
    retried = manifest.get("retried", 0)
    return f"{fingerprint}+{retried}" if retried else fingerprint


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two trees of facts, one line per leaf: `caption.prompt: 'a' -> 'b'`.

    Lists of one length are compared entry by entry.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
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
    """Writes a file that other processes see whole or not at all, and that survives a crash of the machine.

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
        """The file of a part, there or not."""
        return self.directory / f"part-{number:05d}.parquet"

    def parts(self) -> list[int]:
        """Numbers of the parts that are there."""
        return sorted(int(file.stem.removeprefix("part-")) for file in self.directory.glob("part-*.parquet"))

    def write(self, number: int, rows: pa.Table) -> bytes:
        """Commits a part; returns what was written."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        data: bytes = sink.getvalue().to_pybytes()
        write_atomically(self.part(number), data)
        return data

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """One part, or all of them in order."""
        numbers = self.parts() if number is None else [number]
        return pa.concat_tables([pq.ParquetFile(self.part(n)).read(columns) for n in numbers])

    def errors(self, *stages: str) -> Counter[tuple[str, str]]:
        """Rows with an error, here and in tables below, by kind and one message of that kind.

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
        """The kinds of error that most rows have, in words."""
        return [f"{n} x {kind}, such as: {message}" for (kind, message), n in self.errors().most_common(most)]

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
        """The settings of the last run here, a file for `load_settings`."""
        return self.root / "settings.yaml"

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings of a run."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_atomically(self.settings, text.encode("utf-8", "surrogatepass"))

    def table(self, cause: Cause) -> Table:
        """The table that a cause names, finished or not."""
        return self.table_of(cause.stage, cause.fingerprint)

    def table_of(self, stage: str, fingerprint: str) -> Table:
        """A stage's table by its fingerprint."""
        return Table(self.root / stage / fingerprint)

    def version(self, cause: Cause) -> str:
        """What names a table's contents, for the stages that are made from it.

        The fingerprint, and how often failed rows of it were tried again; or the version of an earlier table, if its
        manifest says that it came out as that one.
        """
        return _version(cause.fingerprint, self.table(cause).manifest or {})

    def same(self, cause: Cause, contents: str) -> dict[str, str]:
        """For the manifest of a stage whose rows have this hash: the hash, and the table that came out alike before."""
        for file in sorted(self.root.glob(f"{cause.stage}/*/{MANIFEST}")):
            manifest = json.loads(file.read_text())
            if manifest.get("contents") == contents and file.parent != self.table(cause).directory:
                return {"contents": contents, "same_as": _version(file.parent.name, manifest)}
        return {"contents": contents}

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
        with self._written():
            self.root.mkdir(parents=True, exist_ok=True)
            stream = (self.root / "run.lock").open("a+b", buffering=0)
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().decode() or "another process"
                raise RunError(f"{self.root} is in use by {holder}; wait for it, or choose another --run-dir") from None
            with self._written():
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot write to the run directory {self.root}: {error.strerror}") from error
