"""Tables on disk: numbered parts, each committed by atomic rename, and the manifest that declares them whole."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.listing import Listing, describe, find_problems, is_part
from carevl.store.parts import check_part, encode_part, read_names, read_part

MANIFEST = "manifest.json"
REMADE = "remade"
"""Of a table whose files were damaged and came out otherwise: its number of retries with the last of that."""
_UNLISTED = ("checkpoints", "data", "reference", "tracker")
"""Directories of a training that nothing after it reads; checkpoints have hashes of their own."""
_NEVER_READ = (".png", ".lock")
BEGUN = "begun.json"
"""Of an unfinished table: what it is made from, as its manifest will say."""


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
        """Return the numbers of the parts that are there.

        Raises:
            DamagedError: one that the manifest lists is not.
        """
        numbers = self._present()
        if missing := self._listed() - numbers:
            raise DamagedError(self.part(min(missing)), "is missing")
        return sorted(numbers)

    def _present(self) -> set[int]:
        return {_number(file.name) for file in self.directory.glob("part-*.parquet")}

    def _listed(self) -> set[int]:
        """Return the numbers of the parts that the manifest here, or in the directory above, lists of this table."""
        for owner, below in ((self, ""), (Table(self.directory.parent), f"{self.directory.name}/")):
            if (manifest := owner.manifest) is not None:
                names = [name.removeprefix(below) for name in manifest.get("files", ()) if name.startswith(below)]
                return {_number(name) for name in names if name.startswith("part-")}
        return set()

    def write(self, number: int, rows: pa.Table) -> None:
        """Commit a part."""
        write_atomically(self.part(number), encode_part(rows))

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return one part, or all of them in order; whole numbers that an earlier version wrote join later floats.

        Raises:
            DamagedError: a part is missing, or is not what was written.
        """
        numbers = self.parts() if number is None else [number]
        parts = [read_part(self.part(n), columns) for n in numbers]
        return pa.concat_tables(parts, promote_options="permissive")

    def is_made(self, number: int) -> bool:
        """Return whether a part is there and is what was written; one that is damaged is removed, to be made again."""
        try:
            check_part(self.part(number))
        except DamagedError:
            self.part(number).unlink(missing_ok=True)
            return False
        return True

    def errors(self, *stages: str) -> Counter[tuple[str, str]]:
        """Return rows with an error, here and in tables below, by kind and one message of that kind.

        Args:
            stages: counts the rows that failed in these; all when there are none.
        """
        kinds: Counter[str] = Counter()
        messages: dict[str, str] = {}
        for file in sorted(self.directory.rglob("part-*.parquet")):
            names = read_names(file)
            if "error" not in names:
                continue
            columns = ["error", *(["sources"] if "sources" in names else [])]
            for row in read_part(file, columns).to_pylist():
                error = row["error"]
                if isinstance(error, dict) and (not stages or error["stage"] in stages):
                    kinds[error["kind"]] += 1
                    place = "{source} {locator}: ".format(**row["sources"][0]) if row.get("sources") else ""
                    messages.setdefault(error["kind"], f"{place}{error['message']}")
        return Counter({(kind, messages[kind]): n for kind, n in kinds.items()})

    def problems(self, most: int) -> list[str]:
        """Return the kinds of error that most rows have, in words."""
        return [f"{n} x {kind}, such as: {message}" for (kind, message), n in self.errors().most_common(most)]

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the manifest says, or None while the table is unfinished.

        Raises:
            DamagedError: it is not what was written.
        """
        return _read_manifest(self.directory / MANIFEST)

    @property
    def earlier(self) -> dict[str, Any] | None:
        """What the manifest said before `reopen`, None where the table was not; None also if that is damaged."""
        try:
            return _read_manifest(self._put_by)
        except DamagedError:
            return None

    @property
    def last_manifest(self) -> dict[str, Any] | None:
        """What the manifest says, or said before `reopen`; None where neither can be read."""
        try:
            return self.manifest or self.earlier
        except DamagedError:
            return self.earlier

    @property
    def _put_by(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}.{MANIFEST}")

    def list_files(self) -> Listing:
        """Return what the table consists of: all files below its directory that something may read."""
        return describe(self.directory, self._files())

    @property
    def progress(self) -> str | None:
        """How far an unfinished table is, None where nothing is there to go on from."""
        steps = sorted(self.directory.glob("checkpoints/step-*"))
        if steps:
            return f"the checkpoint after step {int(steps[-1].name.removeprefix('step-'))} is there"
        parts = [*self.directory.glob("part-*.parquet"), *self.directory.glob("judgments/part-*.parquet")]
        split = {place.name.split("-")[1] for place in self.directory.glob(".split-*")}
        pieces = [f"{len(split)} are made in pieces, since processes died at them"] if split else []
        return "; ".join([*([f"{len(parts)} parts are there"] if parts else []), *pieces]) or None

    @property
    def cause(self) -> dict[str, Any] | None:
        """What it is made from, finished or begun; None where that cannot be read."""
        try:
            begun = read_json(self.directory / BEGUN, "") if (self.directory / BEGUN).exists() else None
        except DamagedError:
            begun = None
        facts = self.last_manifest or begun or {}
        return facts.get("cause")

    def is_remade_since(self, version: str) -> bool:
        """Return whether rows came out otherwise after what is made of this version was made, and not only failed ones.

        Args:
            version: as `Run.version` gives it.
        """
        remade: int = (self.last_manifest or {}).get(REMADE, 0)
        return int(version.partition("+")[2] or 0) < remade

    @property
    def is_begun(self) -> bool:
        """Whether it is there, finished or not."""
        return any((self.directory / name).exists() for name in (MANIFEST, BEGUN))

    def begin(self, cause: Mapping[str, Any]) -> None:
        """Say what a table is made from, before it is whole."""
        write_atomically(self.directory / BEGUN, encode_json({"cause": cause}))

    def finish(self, manifest: Mapping[str, Any], files: Listing | None = None) -> None:
        """Declare the table whole.

        Args:
            files: what it consists of, which the manifest lists; None: `list_files`.
        """
        content = {**manifest, "files": self.list_files() if files is None else files}
        write_atomically(self.directory / MANIFEST, encode_json(content))
        for file in (self._put_by, self.directory / BEGUN):
            file.unlink(missing_ok=True)

    def reopen(self, damaged: Iterable[str] = ()) -> None:
        """Declare the table unfinished, and remove what is damaged; `earlier` keeps what the manifest says.

        Args:
            damaged: files to be made again, as `find_damage` names them. Of a directory of weights all go together.
        """
        for name in damaged:
            if name == MANIFEST:
                (self.directory / MANIFEST).unlink()
            elif "/" in name and not is_part(name):
                shutil.rmtree(self.directory / name.split("/")[0], ignore_errors=True)
            else:
                (self.directory / name).unlink(missing_ok=True)
        if (self.directory / MANIFEST).exists():
            os.replace(self.directory / MANIFEST, self._put_by)

    def find_damage(self, *, verify: bool = False) -> dict[str, str]:
        """Return the files that are not as the manifest lists them, and what is the matter with each, in words.

        Of an unfinished table only `verify` finds anything: parts that are not what was written.

        Args:
            verify: whether all bytes are read; else names and sizes are compared.
        """
        try:
            manifest = self.manifest
        except DamagedError as error:
            return {MANIFEST: error.problem}
        parts = filter(is_part, self._files()) if manifest is None and verify else ()
        files: Listing = {name: {} for name in parts} if manifest is None else manifest.get("files", {})
        return find_problems(self.directory, files, verify=verify)

    def _files(self) -> Iterator[str]:
        for file in sorted(self.directory.rglob("*")):
            name = file.relative_to(self.directory)
            passing = any(part.startswith(".") for part in name.parts) or file.suffix in _NEVER_READ
            if file.is_file() and not passing and name.parts[0] not in (*_UNLISTED, MANIFEST, BEGUN):
                yield name.as_posix()


def _number(name: str) -> int:
    return int(Path(name).stem.removeprefix("part-"))


def _read_manifest(file: Path) -> dict[str, Any] | None:
    return read_json(file, "`carevl run` makes it again") if file.exists() else None
