"""Directories of tiny families, each written once in a test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.families.writing import write_family


@pytest.fixture(scope="session")
def family_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`family_directory("gemma3")`: a directory with that family; nobody may change its files.

    `seed` and `dtype` are those of `write_family`. The processes of pytest-xdist share what any of them has written.
    """
    shared = tmp_path_factory.getbasetemp()
    root = (shared.parent if hasattr(request.config, "workerinput") else shared) / "families"
    root.mkdir(exist_ok=True)

    def write(name: str, *, seed: int = 0, dtype: str = "float32") -> Path:
        directory = root / f"{name}-{seed}-{dtype}"
        with FileLock(f"{directory}.lock"):
            if not (directory / "written").exists():
                write_family(name, directory, seed=seed, dtype=dtype)
                (directory / "written").touch()
        return directory

    return write
