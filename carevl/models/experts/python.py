"""Kind `python`: a class of the user's, named `package.module:Class`, with the method `score(conversations)`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.experts.base import ExpertKind, RowScorer, score_by_row

if TYPE_CHECKING:
    from carevl.settings.models import Expert


class PythonKind(ExpertKind):
    """`path` is the class: called without arguments, and `score` takes and gives what `RewardScorer.score` does."""

    name = "python"

    def load(self, expert: Expert) -> RowScorer:
        """Make an instance of the class."""
        return score_by_row(_class(expert.path)())

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
