"""Kind `python`: a class of the user's, named `package.module:Class`, with the method `score(conversations)`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.conversations import as_text
from carevl.models.experts.base import ExpertKind, Row, RowScorer, by_row
from carevl.models.row_errors import retry_engine

if TYPE_CHECKING:
    from carevl.settings.models import Expert


class PythonKind(ExpertKind):
    """`path` is the class: called without arguments, and `score` takes and gives what `RewardScorer.score` does.

    It gets a single text before each response: several turns with a name before each.
    """

    name = "python"

    def load(self, expert: Expert) -> RowScorer:
        """Make an instance of the class."""
        instance = _class(expert.path)()

        def score_rows(rows: Sequence[Row]) -> list[list[float]]:
            return by_row(instance.score, [[(as_text(row[0]), text) for text in row[1]] for row in rows])

        return lambda rows: retry_engine(instance, score_rows, rows)

    def fingerprint(self, expert: Expert) -> str:
        """Return a hash of the source of the class's module."""
        spec = _module_spec(expert.path)
        source = Path(spec.origin).read_bytes() if spec.has_location and spec.origin else b""
        return hashlib.sha256(source).hexdigest()[:16]

    def check(self, expert: Expert) -> None:
        """Refuse a class that cannot be imported, or that has no `score`."""
        super().check(expert)
        _class(expert.path)


def _module_spec(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        spec = importlib.util.find_spec(module) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"expert {path}: there is no such class; write package.module:Class, importable on every node")
    return spec


def _class(path: str) -> type[Any]:
    _module_spec(path)
    module, _, name = path.partition(":")
    cls = getattr(importlib.import_module(module), name, None)
    if not isinstance(cls, type) or not callable(getattr(cls, "score", None)):
        raise UserError(f"expert {path}: {module} has no class {name} with a method score(conversations)")
    return cls


KIND = PythonKind()
