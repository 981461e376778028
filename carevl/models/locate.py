"""Where a model's weights lie, and what identifies them.

The shipped models are package data of the scheme `miniworld:` (`carevl.settings.schemes`).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.settings.schemes import split_scheme
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.models import Model


def locate(path: str) -> str:
    """Return a model's directory or hub id; a path with a scheme (`miniworld:NAME`) becomes the directory it names.

    Raises:
        UserError: the scheme has no such model, or a directory is without configuration or safetensors.
    """
    split = split_scheme(path)
    directory = Path(path) if split is None else split[0].model(split[1])
    if not directory.is_dir():
        return path
    for what, pattern in (("config.json", "config.json"), ("safetensors weights", "*.safetensors")):
        if not any(directory.glob(pattern)):
            raise RunError(f"{directory} has no {what}: it is not a model that can be loaded")
    return str(directory)


def locate_adapter(path: str) -> Path:
    """Return a LoRA adapter's directory.

    Raises:
        RunError: it lacks its configuration or its safetensors.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(path) / name).is_file():
            raise RunError(f"{path} has no {name}: it is not a LoRA adapter that can be loaded")
    return Path(path)


@cache
def weights_fingerprint(path: str, revision: str | None) -> str:
    """Return what identifies a model's weights: a hash of a directory's files, or hub id and revision."""
    directory = Path(locate(path))
    return _hash(directory) if directory.is_dir() else f"{path}@{revision or 'main'}"


@cache
def adapter_fingerprint(path: str) -> str:
    """Return the same of a LoRA adapter."""
    return _hash(locate_adapter(path))


def _hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in directory.iterdir() if file.is_file() and file.suffix != ".md"):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def loading_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that every `from_pretrained` and every engine takes: which revision, and whose code."""
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
