"""Where a model's weights lie, and what identifies them.

The shipped models are package data of the scheme `miniworld:` (`carevl.settings.schemes`); a hub model is a snapshot in
the cache of huggingface_hub (`carevl.models.hub`), which the driver fills before anything starts.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.models.download import fetch_model, fetch_models
from carevl.models.hub import find_snapshot
from carevl.settings.schemes import split_scheme
from carevl.store.published import refuse_damaged
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.models import Model

_log = logging.getLogger(__name__)


def locate(path: str, revision: str | None = None) -> str:
    """Return the directory that a model lies in on this machine: nothing is fetched.

    A path with a scheme (`miniworld:NAME`) becomes the directory it names, a hub id its snapshot in the cache. A hub
    model that is not there whole stays the id that it is.

    Raises:
        UserError: the scheme has no such model, or a directory is without configuration or safetensors, or damaged.
    """
    directory = own_directory(path) or find_snapshot(path, revision)
    return path if directory is None else str(directory)


def own_directory(path: str) -> Path | None:
    """Return the directory that a path names by itself or by its scheme, None for a hub id; errors as for `locate`."""
    split = split_scheme(path)
    directory = Path(path) if split is None else split[0].model(split[1])
    if not directory.is_dir():
        return None
    refuse_damaged(directory)
    for what, pattern in (("config.json", "config.json"), ("safetensors weights", "*.safetensors")):
        if not any(directory.glob(pattern)):
            raise RunError(f"{directory} has no {what}: it is not a model that can be loaded")
    return directory


def ensure_local(path: str, revision: str | None = None, *, code: bool = False) -> str:
    """Return the directory that a model is loaded from; a hub model that this node lacks is fetched.

    Args:
        code: whether its own Python code will run.

    Raises:
        UserError: as for `locate`; the hub has no such model, or does not give it.
    """
    directory = own_directory(path) or find_snapshot(path, revision, code=code)
    if directory is None:
        refuse_missing_directory(path)
        fetch_model((path, revision, code), _log.info)
        directory = find_snapshot(path, revision, code=code)
    return path if directory is None else str(directory)


def refuse_missing_directory(path: str) -> None:
    """Refuse what cannot be a model of the hub and is no directory here, before the hub is asked for it.

    Raises:
        UserError: there is no such directory.
    """
    if split_scheme(path) is not None or Path(path).is_dir():
        return
    parent = Path(path).parent
    begins_here = str(parent) != "." and parent.is_dir()
    if Path(path).exists():
        raise RunError(f"{path} is a file; a model is a directory with config.json and safetensors, or a hub id")
    if begins_here or _HUB_ID.fullmatch(path) is None:
        beside = sorted(each.name for each in parent.iterdir() if each.is_dir()) if begins_here else ()
        hint = f"{parent} has {', '.join(beside[:_NAMED]) or 'none'}" if begins_here else "nor is it an id of the hub"
        raise RunError(f"{path}: there is no such directory; {hint}")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NAMED = 5


@dataclass(frozen=True)
class Weights:
    """A model as it is named to processes of other nodes, each of which finds it in its own cache."""

    path: str
    revision: str | None = None
    code: bool = False
    """Whether Python code that comes with it may run."""

    @classmethod
    def of(cls, path: str | Path, revision: str | None = None, *, code: bool = False) -> Weights:
        """Name a model of the settings: a directory by its absolute path, a hub model by id and revision."""
        directory = own_directory(str(path))
        return cls(str(path), revision, code) if directory is None else cls(str(directory.resolve()), code=code)

    @property
    def directory(self) -> Path:
        """Its directory on this node; errors as for `ensure_local`."""
        return Path(ensure_local(self.path, self.revision, code=self.code))

    @property
    def fingerprint(self) -> str:
        """What identifies it, as `weights_fingerprint`."""
        return weights_fingerprint(self.path, self.revision)


def prepare_models(models: Mapping[str, Model], log: Callable[[str], None]) -> bool:
    """Bring every hub model among some into this machine's cache, before anything that needs one starts.

    Args:
        models: by the setting that names each.

    Returns:
        Whether there are any.

    Raises:
        UserError: a line for every one that cannot be had.
    """
    hub = {
        place: (model.path, model.revision, model.trust_remote_code)
        for place, model in models.items()
        if own_directory(model.path) is None
    }
    for path, _, _ in hub.values():
        refuse_missing_directory(path)
    fetch_models(hub, log)
    return bool(hub)


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
    directory = own_directory(path)
    return f"{path}@{revision or 'main'}" if directory is None else _hash(directory)


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


def model_directory(model: Model) -> str:
    """Return the directory that a model of the settings is loaded from, as `ensure_local`."""
    return ensure_local(model.path, model.revision, code=model.trust_remote_code)


def loading_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that every `from_pretrained` and every engine takes: whose code runs."""
    return {"trust_remote_code": model.trust_remote_code}
