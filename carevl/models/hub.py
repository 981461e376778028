"""Models of the Hugging Face hub: which files of a repository are read, and what of them lies in the cache.

A model is named by its id and a revision (a commit, or a branch that moves). On this machine it is a directory of the
cache of huggingface_hub (`HF_HOME`), one for each commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError, hide_secrets, reading

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SETTINGS = (".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Configuration, tokenizer, processor and templates, where they stand beside the weights."""
_TEMPLATES = "additional_chat_templates/"
_WEIGHTS = ".safetensors"


class HubError(UserError):
    """A model that the hub does not give; `reached` unless nothing answered there."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: its bytes, the name of its contents in the cache, and whether that name is their sha256."""

    size: int
    blob: str
    is_sha256: bool


@dataclass(frozen=True)
class Listing:
    """The files of a model that are read, by name, at one commit; `parameters` counts weights by their format."""

    name: str
    revision: str | None
    commit: str
    files: Mapping[str, HubFile]
    parameters: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(file.size for name, file in self.files.items() if name.endswith(_WEIGHTS))

    def present(self) -> int:
        """Return how many of the bytes lie in the cache, those of unfinished downloads among them."""
        blobs = repository_directory(self.name) / "blobs"
        return sum(_bytes_there(blobs, file) for file in self.files.values())


def _bytes_there(blobs: Path, file: HubFile) -> int:
    if (blobs / file.blob).exists():
        return file.size
    partial = partial_file(blobs / file.blob)
    return min(partial.stat().st_size, file.size) if partial.exists() else 0


def partial_file(blob: Path) -> Path:
    """Return where the contents of a file gather while they come in."""
    return blob.with_name(f"{blob.name}.incomplete")


def choose_files(names: Iterable[str], *, code: bool) -> list[str]:
    """Return the files of a repository that are read: weights, configuration, tokenizer, processor and templates.

    Weights under other names than `model*` are a second copy where there are such.

    Args:
        code: whether Python modules are among them.
    """
    names = sorted(names)
    beside = [name for name in names if "/" not in name]
    weights = [name for name in beside if name.endswith(_WEIGHTS)]
    weights = [name for name in weights if name.startswith("model")] or weights
    others = [name for name in beside if name.endswith(_SETTINGS)]
    templates = [name for name in names if name.startswith(_TEMPLATES) and name.endswith(".jinja")]
    return [*weights, *others, *templates, *(name for name in names if code and name.endswith(".py"))]


def repository_directory(name: str) -> Path:
    """Return a model's directory in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    return cache / repo_folder_name(repo_id=name, repo_type="model")


def find_snapshot(name: str, revision: str | None, *, code: bool = False) -> Path | None:
    """Return the directory of a hub model that lies whole in the cache, None where it does not; no network is used.

    A branch is the commit that it was when it was last asked for.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        repository = repository_directory(name)
    except HFValidationError:  # no hub id at all: whoever needs the model says so
        return None
    commit = _cached_commit(repository, revision)
    snapshot = repository / "snapshots" / commit if commit else None
    if snapshot is None or not snapshot.is_dir():
        return None
    listed = _cached_names(name, commit)
    expected = _names_by_index(snapshot) if listed is None else choose_files(listed, code=code)
    return snapshot if expected and all((snapshot / file).exists() for file in expected) else None


def find_config(name: str, revision: str | None) -> Path | None:
    """Return the config.json of a hub model in the cache, whatever else of it is there; no network is used.

    None where it is not there, or where the name is neither a directory nor a hub id: whoever loads it says so.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _cached_commit(repository: Path, revision: str | None) -> str | None:
    if COMMIT.fullmatch(revision or ""):
        return revision
    reference = repository / "refs" / (revision or "main")
    return reference.read_text().strip() if reference.is_file() else None


def _cached_names(name: str, commit: str | None) -> list[str] | None:
    """Return the files of a commit as the hub listed them, None where its listing was not kept."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(name, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return None


def _names_by_index(snapshot: Path) -> list[str]:
    """Return what a snapshot that others fetched has to hold: the configuration and every shard of its weights."""
    indices = sorted(snapshot.glob(f"*{_WEIGHTS}.index.json"))
    with reading(snapshot):
        shards = {shard for index in indices for shard in json.loads(index.read_text())["weight_map"].values()}
    weights = shards or {file.name for file in snapshot.glob(f"*{_WEIGHTS}")}
    return ["config.json", *sorted(weights)] if weights else []


def is_offline() -> bool:
    """Return whether the environment forbids to ask the hub (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ask(name: str, revision: str | None, *, code: bool = False, timeout: float | None = None) -> Listing:
    """Ask the hub what a model consists of, and whether this machine may read it.

    Args:
        code: whether its own Python code will run.
        timeout: seconds that the hub has for an answer; those of huggingface_hub (`HF_HUB_ETAG_TIMEOUT`) when None.

    Raises:
        HubError: there is no such model or revision, it needs a token, it has no safetensors, or the hub does not
            answer; a sentence with the way out.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    timeout = constants.HF_HUB_ETAG_TIMEOUT if timeout is None else timeout
    with explained(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
        assert info.sha is not None
        if info.gated:  # what it consists of is told to everyone; what is in its files is not
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=info.sha), timeout=timeout)
    listing = _listing(name, revision, info, code)
    if not listing.weight_bytes:
        others = sorted(s.rfilename for s in info.siblings or () if s.rfilename.endswith((".bin", ".pt", ".gguf")))
        stored = f", only {others[0]}" if others else ""
        raise HubError(
            f"{name} has no safetensors weights{stored}, and no other format is loaded; choose a revision or a model "
            "that has them"
        )
    return listing


def _listing(name: str, revision: str | None, info: ModelInfo, code: bool) -> Listing:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = {}
    for file in choose_files(siblings, code=code):
        sibling = siblings[file]
        blob = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
        if _HASH.fullmatch(blob) is None:  # it becomes the name of a file in the cache
            raise HubError(
                f"{name}: the hub names the contents of {file} by {blob!r}, which is no hash; use another hub"
            )
        files[file] = HubFile(sibling.size or 0, blob, sibling.lfs is not None)
    parameters = dict(info.safetensors.parameters) if info.safetensors else {}
    return Listing(name, revision, info.sha or "", files, parameters)


@contextmanager
def explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what goes wrong at the hub into a sentence.

    Raises:
        HubError: in place of an error of huggingface_hub or httpx.
    """
    import httpx
    from huggingface_hub import constants, errors, get_token

    model = f"{name}@{revision or 'main'}"
    host = hide_secrets(constants.ENDPOINT)
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(offline_message(name, revision), reached=False) from None
    except errors.HFValidationError:
        raise HubError(f"{name}: there is no such directory, and it is no hub id") from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{model}: the hub has no such revision; take a commit from {host}/{name}/commits/main"
        ) from None
    except errors.GatedRepoError:
        page = f"{host}/{name}"
        if get_token():
            raise HubError(
                f"{name} is gated, and the account of HF_TOKEN has no access; ask for it at {page}"
            ) from None
        raise HubError(
            f"{name} is gated; accept its terms at {page}, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{name}: there is no such directory, and the hub has no such model, or a private one; check the id, or "
            "set HF_TOKEN to a token that may read it"
        ) from None
    except httpx.TransportError as error:
        is_slow = isinstance(error, httpx.TimeoutException)
        problem = "is too slow to answer" if is_slow else "cannot be reached"
        raise HubError(
            f"{model} is not whole in the cache {constants.HF_HUB_CACHE}, and the hub at {host} {problem}; try again "
            "with a connection (HTTPS_PROXY and HF_ENDPOINT are respected), or copy the snapshot into the cache",
            reached=False,
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise HubError(f"{model}: the hub at {host} answered {status}; try again later") from error


def offline_message(name: str, revision: str | None) -> str:
    """Return what is said of a model that is not in the cache where the hub may not be asked."""
    from huggingface_hub import constants

    pinned = f" --revision {revision}" if revision else ""
    return (
        f"{name}@{revision or 'main'} is not whole in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
        f"to fetch it; unset that, or copy the snapshot there (`hf download {name}{pinned}` where there is a network)"
    )
