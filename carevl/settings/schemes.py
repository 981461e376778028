"""Schemes: who resolves paths such as `miniworld:judge`, named by import path so that nothing here knows them.

```python
SCHEMES = {"miniworld": "carevl.miniworld.scheme:MINIWORLD"}
"miniworld:judge"                  # a registered scheme, and the name that it is to resolve
"my_package.worlds:MINE:train"     # one of the user's own: an instance of `Scheme`
```
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import SettingsError
from carevl.settings.registry import import_object

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

SCHEMES = {"miniworld": "carevl.miniworld.scheme:MINIWORLD", "package": "carevl.models.packaged:PACKAGED"}
"""Name to the import path of the object that resolves it."""

DRAWN_PREFIX = "world-"
"""Names of the directories that data are drawn into, below a run directory, begin with this. What lies there is known
by its size alone: drawn again it is the same, and a copy of a run directory stays valid."""

_OWN = re.compile(r"((?:[^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*):(.*)")


class Scheme:
    """Resolves the names of one scheme. It may have models, data, or both; what it does not have is refused."""

    name: str

    def model(self, name: str) -> Path:
        """Return the directory of a model.

        Raises:
            UserError: there is no such model.
        """
        raise SettingsError(f"{self.name}:{name}: {self.name} has no models")

    def data_directory(self, settings: Settings) -> str:
        """Return the name of the directory that the data of these settings are drawn into, below a run directory.

        It begins with DRAWN_PREFIX, and differs wherever the data do.
        """
        raise SettingsError(f"{self.name}: it has no data")

    def is_drawn(self, settings: Settings, root: Path) -> bool:
        """Tell whether the data lie whole below a run directory."""
        raise SettingsError(f"{self.name}: it has no data")

    def draw(self, settings: Settings, root: Path) -> None:
        """Write the data below a run directory, the same bytes for the same settings.

        Raises:
            UserError: they cannot be written.
        """
        raise SettingsError(f"{self.name}: it has no data")

    def draw_test(self, root: Path, seed: int) -> Path:
        """Draw test data that nothing was chosen on, by a seed of their own, unless they are there; return the file.

        Raises:
            UserError: as `draw`.
        """
        raise SettingsError(f"{self.name}: it has no test data to draw")


def split_scheme(path: str) -> tuple[Scheme, str] | None:
    """Return a path's scheme and the name after it, or None for a path without a scheme.

    Raises:
        SettingsError: the scheme cannot be imported, or is no `Scheme`.
    """
    name, colon, rest = path.partition(":")
    if colon and name in SCHEMES:
        return _load(SCHEMES[name]), rest
    own = _OWN.fullmatch(path)
    return (_load(own[1]), own[2]) if own else None


def _load(import_path: str) -> Scheme:
    scheme = import_object(import_path, "scheme")
    if not isinstance(scheme, Scheme):
        raise SettingsError(f"scheme {import_path}: it is no carevl Scheme, but {type(scheme).__name__}")
    return scheme
