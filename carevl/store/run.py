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
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from carevl.errors import MachineError, UserError, explain_full_disk
from carevl.periodic import call_every
from carevl.store.listing import describe_problems
from carevl.store.stage_key import StageKey, differences
from carevl.store.table import BEGUN, MANIFEST, Table, write_atomically

VERSION = 1
"""Of run directories: raised when one that this carevl has written would mislead an earlier one."""
_BEAT, _PATIENCE, _GRACE = 10.0, 25.0, 3.0
"""Seconds between two signs of life of the process that holds a directory, until one elsewhere that gives none is gone,
and until a lock that is held is taken for held."""

_held: set[Path] = set()
"""The run directories that this process holds."""
_SETTINGS_HEAD = b"# run directory, version "
_SETTINGS_MARK = b"# sha256 of the lines above: "


class RunError(UserError):
    """A run that cannot begin or go on."""


@dataclass(frozen=True)
class Run:
    """A run directory."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> Run:
        """Return the run directory at a path, which means the same on every node.

        Raises:
            RunError: the path names a bucket, a file, or a link to nothing.
        """
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            raise RunError(
                f"{path}: a run directory is on a file system that every node mounts, since parts are committed by "
                "renaming files; only sources may lie in a bucket"
            )
        if path.is_symlink() and not path.exists():
            raise RunError(f"{path} is a link to nothing; name a directory")
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; name a directory that is absent, or that of a run")
        return cls(path.absolute())

    @property
    def settings(self) -> Path:
        """The settings of the last run here, a file for `load_settings`."""
        return self.root / "settings.yaml"

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a run."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        data = _SETTINGS_HEAD + f"{VERSION}\n{text}".encode("utf-8", "surrogatepass")
        write_atomically(self.settings, data + _SETTINGS_MARK + hashlib.sha256(data).hexdigest().encode() + b"\n")

    def find_settings_problem(self) -> str | None:
        """Return what is the matter with the file of settings; None where it is what was written, or is unmarked."""
        if not self.settings.is_file():
            return "is missing"
        text, mark, digest = self.settings.read_bytes().partition(_SETTINGS_MARK)
        if digest == hashlib.sha256(text).hexdigest().encode() + b"\n":
            return None
        if not text:
            return "is damaged: it is empty"
        begins = text[: len(_SETTINGS_HEAD)] == _SETTINGS_HEAD[: len(text)]
        marked = mark or begins  # neither: an earlier version wrote it
        return "is damaged, or was changed by hand: its checksum does not fit" if marked else None

    def table(self, key: StageKey) -> Table:
        """Return the table that a key names, finished or not."""
        return self.table_of(key.stage, key.fingerprint)

    def table_of(self, stage: str, fingerprint: str) -> Table:
        """A stage's table by its fingerprint."""
        return Table(self.root / stage / fingerprint)

    def version(self, key: StageKey) -> str:
        """Return what names a table's contents, for the stages that are made from it.

        The fingerprint, and how often failed rows of it were tried again; or the version of an earlier table, if its
        manifest says that it came out as that one.
        """
        return _version(key.fingerprint, self.table(key).last_manifest or {})

    def same(self, key: StageKey, contents: str) -> dict[str, str]:
        """For the manifest of a stage whose rows have this hash: the hash, and the table that came out alike before."""
        for table, manifest in self._finished(key.stage):
            if manifest.get("contents") == contents and table.directory != self.table(key).directory:
                return {"contents": contents, "same_as": _version(table.directory.name, manifest)}
        return {"contents": contents}

    def latest(self, stage: str) -> dict[str, Any] | None:
        """Return the manifest of the stage's last finished table, None when there is none."""
        manifests = [manifest for _, manifest in self._finished(stage)]
        return manifests[-1] if manifests else None

    def tables(self, keys: Mapping[str, StageKey]) -> dict[str, Table]:
        """Return the tables that keys name, by their names, and then all that were finished here, by their paths."""
        named = {name: self.table(key) for name, key in keys.items()}
        known = {table.directory for table in named.values()}
        depths = ("*/*", "*/*/*", "round-*/*/*/*")
        others = [file.parent for depth in depths for file in sorted(self.root.glob(f"{depth}/{MANIFEST}"))]
        found = {str(place.relative_to(self.root)): Table(place) for place in others if place not in known}
        return named | found

    def _finished(self, stage: str) -> list[tuple[Table, dict[str, Any]]]:
        """Return the finished tables of a stage, the oldest first, with their manifests; damaged ones are left out."""
        files = sorted(self.root.glob(f"{stage}/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime_ns)
        tables = [Table(file.parent) for file in files]
        return [(table, manifest) for table in tables if (manifest := table.last_manifest) is not None]

    def causes(self, stage: str) -> Iterator[tuple[Table, dict[str, Any]]]:
        """Yield the stage's tables, finished or begun, those made last first, with their fingerprint inputs."""
        files = [file for name in (MANIFEST, BEGUN) for file in self.root.glob(f"{stage}/*/{name}")]
        directories = {file.parent: file.stat().st_mtime_ns for file in files}
        for directory in sorted(directories, key=lambda directory: directories[directory], reverse=True):
            if (cause := Table(directory).cause) is not None:
                yield Table(directory), cause

    def origin(self, manifest: Mapping[str, Any], stage: str) -> dict[str, Any]:
        """Return the manifest of the stage's table that a table comes from, however many stages before.

        Args:
            manifest: of the table.

        Raises:
            RunError: one of the tables between them is gone.
        """
        source = dict(manifest)
        while source["stage"] != stage:
            inputs = source["cause"]["inputs"]
            name = stage if stage in inputs else next(iter(inputs))
            table = self.table_of(name, fingerprint_of(inputs[name]))
            if table.manifest is None:
                raise RunError(f"{table.directory} is gone, but {source['stage']} was made from it; `carevl run` again")
            source = table.manifest
        return source

    def action(self, key: StageKey) -> tuple[str, str]:
        """Return what a run has to do for a stage, and why.

        Returns:
            (`skip` | `repair` | `resume` | `run` | `recompute`, reason).
        """
        table = self.table(key)
        if damage := table.find_damage():
            return "repair", describe_problems(damage)
        if table.manifest is not None:
            return "skip", "nothing it depends on has changed"
        if table.earlier is not None:
            return "repair", "it was taken up again, and not finished"
        if (progress := table.progress) is not None:
            return "resume", progress
        last = self.latest(key.stage)
        if last is None:
            return "run", "never run"
        return "recompute", "; ".join(differences(last["cause"], dict(key.fingerprint_inputs)))

    @property
    def refusal(self) -> str | None:
        """Why nothing may be written here: a later version of carevl did, in ways that this one does not know."""
        if not self.settings.is_file():
            return None
        with self.settings.open("rb") as stream:
            written = re.match(rb"# run directory, version (\d+)", stream.readline(200))
        if written is None or int(written[1]) <= VERSION:
            return None
        return (
            f"{self.root} was written by a later carevl (run directories of version {int(written[1])}; this one knows "
            f"{VERSION}): nothing in it is changed; use that carevl, or another directory"
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory for this process, in which it may be held once more.

        The system's lock reaches as far as the file system carries it: over NFS to other machines only where the server
        keeps locks. A holder on another machine is therefore believed to live as long as its lock file gets younger.
        A killed process lets go a moment after its end was reported: a lock that is held is asked for again.

        Raises:
            RunError: another process holds it, the directory cannot be written, or a later carevl has written it.
            MachineError: the disk is full.
        """
        if self.root in _held:
            yield
            return
        if (refusal := self.refusal) is not None:
            raise RunError(refusal)
        with self._written():
            self.root.mkdir(parents=True, exist_ok=True)
            stream = (self.root / "run.lock").open("a+b", buffering=0)
        with stream:
            if not _take_lock(stream.fileno()):
                raise self._in_use(_read_holder(stream.fileno()))
            holder, here = _read_holder(stream.fileno()), socket.gethostname()
            if holder and not holder.endswith(f" on {here}") and _gives_sign(stream.fileno()):
                raise self._in_use(holder)
            with self._written():
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {here}".encode())
            _held.add(self.root)
            try:
                with call_every(_BEAT, lambda: os.utime(stream.fileno())):
                    yield
            finally:
                _held.remove(self.root)
                stream.truncate(0)

    def _in_use(self, holder: str) -> RunError:
        return RunError(
            f"{self.root} is in use by {holder or 'another process'}; wait for it, or choose another directory"
        )

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if (full := explain_full_disk(error, self.root)) is not None:
                raise MachineError(full) from error
            raise RunError(f"cannot write to the run directory {self.root}: {error.strerror}") from error


def _take_lock(lock: int) -> bool:
    deadline = time.monotonic() + _GRACE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _read_holder(lock: int) -> str:
    return os.pread(lock, 300, 0).decode(errors="replace")


def _gives_sign(lock: int) -> bool:
    """Watch the lock file of a holder on another machine, which touches it as long as it lives."""
    first, deadline = os.fstat(lock).st_mtime_ns, time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        time.sleep(_PATIENCE / 25)
        if os.fstat(lock).st_mtime_ns != first:
            return True
    return False


def fingerprint_of(version: str) -> str:
    """Return the fingerprint in a version, which also tells how often failed rows were tried again."""
    return version.partition("+")[0]


def _version(fingerprint: str, manifest: Mapping[str, Any]) -> str:
    if "same_as" in manifest:
        return str(manifest["same_as"])
    retried = manifest.get("retried", 0)
    return f"{fingerprint}+{retried}" if retried else fingerprint
