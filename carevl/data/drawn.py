"""Where the paths of the settings lead: a path with a scheme (`miniworld:FILE`) lies among what the run has drawn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow.fs import FileSystem

from carevl.data.files import locate, stamp
from carevl.data.rows import clean
from carevl.errors import SettingsError
from carevl.settings.schemes import DRAWN_PREFIX, Scheme, split_scheme
from carevl.store.damage import WAY_OUT, DamagedError, encode_json, read_json
from carevl.store.listing import describe, find_problems
from carevl.store.run import Run, RunError
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


_LISTING = ".files.json"
"""In a directory of drawn data: its files, with sizes and hashes."""


@dataclass(frozen=True)
class DataRoot:
    """Resolves paths of the settings, and tells what identifies the files there.

    Both are independent of whether drawn data lie in the run directory or elsewhere: a plan, which writes nothing
    there, gives the fingerprints that the run then has.
    """

    settings: Settings
    run: Path
    """The run directory."""
    drawn: Path
    """Where drawn data lie: the run directory, or a temporary one."""

    @classmethod
    def of(cls, settings: Settings, run: Run) -> DataRoot:
        """Return the root of a run whose data are drawn."""
        return cls(settings, run.root.absolute(), run.root.absolute())

    def resolve(self, path: str) -> str:
        """Return the path, or URI, that a path of the settings stands for."""
        split = split_scheme(path)
        if split is None:
            return path
        scheme, name = split
        if os.path.isabs(name) or os.pardir in Path(name).parts:
            raise SettingsError(f"{path}: what is drawn lies in a directory of its own, and this leads out of it")
        return str(self.drawn / scheme.data_directory(self.settings) / name)

    def relative(self, file: str) -> str:
        """Return the file's path as fingerprints have it: relative to the run directory if it lies there."""
        return clean(file.removeprefix(f"{self.drawn}/").removeprefix(f"{self.run}/"))

    def stamp(self, path: str, filesystem: FileSystem | None = None) -> list[int]:
        """Return what tells whether the files at a resolved path were changed.

        As `files.stamp`, without the age of what was drawn: a copied run directory stays valid.
        """
        facts = stamp(*locate(path, filesystem))
        drawn = path.startswith((f"{self.drawn}/{DRAWN_PREFIX}", f"{self.run}/{DRAWN_PREFIX}"))
        return facts[:-1] if drawn else facts


def draw(settings: Settings, run: Run) -> None:
    """Draw into the run directory what the settings' sources and benchmarks need and is not there whole.

    Raises:
        UserError: it cannot be written, or a later carevl has written the run directory.
    """
    root = run.root.absolute()
    damaged = find_damage(settings, run)
    for scheme in _schemes(settings):
        place = root / scheme.data_directory(settings)
        if not scheme.is_drawn(settings, root) or place.name in damaged:
            if (refusal := run.refusal) is not None:
                raise RunError(refusal)
            scheme.draw(settings, root)
            names = [file.relative_to(place).as_posix() for file in sorted(place.rglob("*")) if file.is_file()]
            write_atomically(place / _LISTING, encode_json(describe(place, names)))


def find_damage(settings: Settings, run: Run, *, verify: bool = False) -> dict[str, dict[str, str]]:
    """Return what is the matter with the files of drawn data, as `find_problems`, by the names of their directories.

    Nothing of data that are not there, or that an earlier version drew, which listed no files.
    """
    places = [run.root.absolute() / scheme.data_directory(settings) for scheme in _schemes(settings)]
    damage = {}
    for place in places:
        if (place / _LISTING).exists():
            try:
                problems = find_problems(place, read_json(place / _LISTING, WAY_OUT), verify=verify)
            except DamagedError as error:
                problems = {_LISTING: error.problem}
            if problems:
                damage[place.name] = problems
    return damage


@contextmanager
def data_root(settings: Settings, run: Run) -> Iterator[DataRoot]:
    """Give the root of a run's data without writing into the run directory.

    What has to be drawn and is not there whole is drawn into a temporary directory, which is removed afterwards.

    Raises:
        UserError: it cannot be written.
    """
    root = DataRoot.of(settings, run)
    schemes = _schemes(settings)
    if all(scheme.is_drawn(settings, root.drawn) for scheme in schemes) and not find_damage(settings, run):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="carevl-") as directory:
        for scheme in schemes:
            scheme.draw(settings, Path(directory))
        yield DataRoot(settings, root.run, Path(directory))


def _schemes(settings: Settings) -> list[Scheme]:
    """Return the schemes whose data the settings name."""
    paths = [source.path for source in settings.data.sources]
    paths += [path for test in settings.benchmarks for path in (test.path, test.final_path) if path is not None]
    schemes = [split[0] for path in paths if (split := split_scheme(path)) is not None]
    return list(dict.fromkeys(schemes))
