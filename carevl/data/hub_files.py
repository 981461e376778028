"""Data sets of the Hugging Face hub as a filesystem: `hf://datasets/ORG/NAME[@REVISION][/PATH]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from carevl.errors import DataError, hide_secrets

SCHEME = "hf://"
_DATASETS = "datasets/"
_BLOCKS = {"block_size": 4 << 20, "cache_type": "blockcache", "cache_options": {"maxblocks": 8}}
"""Of a file that are fetched at once and held: columns of Parquet are read by turns."""


class HubDataError(DataError):
    """A data set that the hub does not give."""


def locate_on_hub(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of the hub, and the path in it. Nothing is asked yet.

    Raises:
        HubDataError: it names no data set.
    """
    from huggingface_hub import HfFileSystem

    inside = path.removeprefix(SCHEME)
    if not inside.startswith(_DATASETS) or inside.count("/") < 2:
        raise HubDataError(
            f"{path}: a data set of the hub is {SCHEME}{_DATASETS}ORG/NAME, with @REVISION and /PATH or not"
        )
    # A listing is kept as long as its filesystem: each source asks anew.
    return pafs.PyFileSystem(_Handler(HfFileSystem(skip_instance_cache=True))), inside


class _Handler(pafs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Calls of pyarrow, whose errors say what to do."""

    @staticmethod
    def _create_file_info(path: str, info: dict[str, Any]) -> pafs.FileInfo:
        """Return the facts of a file; a number of its contents stands for the time of change, which the hub lacks."""
        if info["type"] != "file":
            return pafs.FileInfo(path, pafs.FileType.Directory)
        number = int((info.get("blob_id") or "0")[:15], 16)
        return pafs.FileInfo(path, pafs.FileType.File, size=info["size"], mtime_ns=number)

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return [self._find(path) for path in paths]

    def _find(self, path: str) -> pafs.FileInfo:
        with _explained(path):
            try:
                return self._create_file_info(path, self.fs.info(path))
            except FileNotFoundError as failure:
                if failure.__cause__ is not None:  # of the data set or its revision, not of a file
                    raise failure.__cause__ from None
                return pafs.FileInfo(path, pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        with _explained(selector.base_dir):
            infos: list[pafs.FileInfo] = super().get_file_info_selector(selector)
            return infos

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        with _explained(path):
            return pa.PythonFile(_File(self.fs.open(path, "rb", **_BLOCKS), path), mode="r")


class _File:
    """An open file, of which reading fails with a sentence."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def read(self, nbytes: int = -1) -> bytes:
        with _explained(self._path):
            data: bytes = self._file.read(nbytes)
            return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what goes wrong at the hub into a sentence, without the addresses that it redirects to, which hold keys.

    Raises:
        HubDataError: in place of an error of huggingface_hub or httpx.
    """
    import httpx
    from huggingface_hub import constants, errors

    where, host = f"{SCHEME}{path}", hide_secrets(constants.ENDPOINT)
    token = "set HF_TOKEN to a token that may read it"
    try:
        yield
    except errors.OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE forbids to ask the hub; unset it, or name a directory with a copy"
    except (errors.HFValidationError, errors.HfUriError):
        reason = f"it is no name of the hub; write {SCHEME}{_DATASETS}ORG/NAME[@REVISION][/PATH]"
    except errors.RevisionNotFoundError:
        reason = "the hub has no such revision of it; name a branch, a tag or a commit"
    except errors.GatedRepoError:
        reason = f"it is gated; accept its terms at {host}, and {token}"
    except errors.RepositoryNotFoundError:
        reason = f"the hub has no such data set, or a private one; check the name, or {token}"
    except httpx.TransportError as failure:
        problem = "is too slow to answer" if isinstance(failure, httpx.TimeoutException) else "cannot be reached"
        reason = f"the hub at {host} {problem}; try again with a connection (HTTPS_PROXY and HF_ENDPOINT are respected)"
    except errors.HfHubHTTPError as failure:
        status = failure.response.status_code if failure.response is not None else "no status"
        reason = f"the hub at {host} answered {status}; try again later"
    else:
        return
    raise HubDataError(f"{where}: {reason}")
