"""Brings models of the hub into this node's cache: once per node, whole, and on from where an earlier try broke off."""

from __future__ import annotations

import glob
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from carevl.models.hub import (
    HubError,
    HubFile,
    Listing,
    ask,
    explained,
    find_snapshot,
    is_offline,
    offline_message,
    partial_file,
    repository_directory,
)
from carevl.models.stored_weights import gigabytes

_FILES_AT_ONCE = 4
_LOG_SECONDS = 5.0
_STALLED_SECONDS = 600.0
"""Seconds without a new byte until another process that fetches the same model is waited for no more."""
_TRIES, _WAIT_SECONDS = 5, 1.0
"""Failed requests in a row that bring nothing, before a download is given up, and the pause that doubles after each."""
_TRIED_AGAIN = (408, 429, 500, 502, 503, 504)

HubModel = tuple[str, str | None, bool]
"""Hub id, revision, and whether its own code is run."""


def fetch_models(models: Mapping[str, HubModel], log: Callable[[str], None]) -> None:
    """Bring models into the cache, each once; ask about all of them, and hold them against the disk, before a byte.

    A commit that lies whole in the cache costs no request. A branch is asked for anew; where nothing answers, what the
    cache has of it stays in use.

    Args:
        models: by the setting that names each.

    Raises:
        HubError: a line for every model that cannot be had, or one about the disk.
    """
    listings: dict[HubModel, Listing] = {}
    problems = []
    for place, model in models.items():
        try:
            listing = None if model in listings else find_missing(model, log)
        except HubError as error:
            problems.append(f"{place}.path: {error}")
            continue
        if listing is not None:
            listings[model] = listing
    if problems:
        raise HubError("\n".join(problems))
    check_disk(listings.values())
    for listing in listings.values():
        fetch(listing, log)


def fetch_model(model: HubModel, log: Callable[[str], None]) -> None:
    """Bring one model into the cache; errors as for `fetch_models`, without the setting."""
    listing = find_missing(model, log)
    if listing is not None:
        check_disk([listing])
        fetch(listing, log)


def find_missing(model: HubModel, log: Callable[[str], None], *, timeout: float | None = None) -> Listing | None:
    """Return what the hub has of a model that is not whole in the cache, None where it is.

    Args:
        timeout: seconds that the hub has for an answer; those of huggingface_hub when None.

    Raises:
        HubError: as `ask`; or the model is missing and the hub may not be asked.
    """
    name, revision, code = model
    snapshot = find_snapshot(name, revision, code=code)
    if snapshot is not None and (is_offline() or snapshot.name == revision):
        return None
    if is_offline():
        raise HubError(offline_message(name, revision), reached=False)
    try:
        listing = ask(name, revision, code=code, timeout=timeout)
    except HubError as error:
        if snapshot is None or error.reached:
            raise
        log(f"{name}@{revision or 'main'}: the hub does not answer; commit {snapshot.name} of the cache is used")
        return None
    return None if snapshot is not None and snapshot.name == listing.commit else listing


def check_disk(listings: Iterable[Listing]) -> None:
    """Hold what is still to come against the disk of the cache.

    Raises:
        HubError: it does not fit.
    """
    missing = sum(listing.size - listing.present() for listing in listings)
    directory, free = free_disk()
    if missing > free:
        raise HubError(
            f"the models still to be downloaded take {gigabytes(missing)}, and {directory} has {gigabytes(free)} free; "
            "make room, or set HF_HOME to a directory with more (one that all nodes see)"
        )


def free_disk() -> tuple[Path, int]:
    """Return the directory of the cache, and the bytes that are free there."""
    directory = repository_directory("any").parent
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    return directory, shutil.disk_usage(existing).free


def fetch(listing: Listing, log: Callable[[str], None]) -> None:
    """Bring what the hub listed into the cache, under a lock of the model.

    Raises:
        HubError: the hub does not give it, its bytes are not those that the hub names, or the disk is full.
    """
    repository = repository_directory(listing.name)
    lock = repository.parent / ".locks" / repository.name / "carevl.lock"
    try:
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _held(lock, listing, log), explained(listing.name, listing.revision):
            large = {name: file for name, file in listing.files.items() if file.is_sha256}
            _fetch_blobs(listing, large, repository / "blobs", log)
            log(f"{listing.name}@{listing.revision or 'main'}: in {_link(listing)}")
    except OSError as error:
        raise HubError(
            f"{listing.name}: {error}; what came in stays in {repository}: mend this, and run the same command again"
        ) from error


@contextmanager
def _held(lock: Path, listing: Listing, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a model; tell while another process of this cache does, which mostly fetches it."""
    from filelock import Timeout

    with ExitStack() as stack:
        before, since = listing.present(), time.monotonic()
        while True:
            if listing.present() != before:
                before, since = listing.present(), time.monotonic()
            if time.monotonic() - since > _STALLED_SECONDS:
                raise HubError(
                    f"{listing.name}: the process that holds {lock} has fetched nothing for "
                    f"{_STALLED_SECONDS / 60:.0f} minutes; end it, and run the same command again"
                )
            try:
                stack.enter_context(_utils().WeakFileLock(lock, timeout=_LOG_SECONDS))
                break
            except Timeout:
                here = f"{gigabytes(listing.present())} of {gigabytes(listing.size)} are here"
                log(f"{listing.name}: waiting for the process that holds {lock}; {here}")
        yield


def _fetch_blobs(listing: Listing, files: Mapping[str, HubFile], blobs: Path, log: Callable[[str], None]) -> None:
    """Fetch the contents of large files side by side, and log how far they are."""
    from huggingface_hub import constants

    stopped = threading.Event()
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        pending = {
            pool.submit(_fetch_blob, listing, name, file, blobs / file.blob, stopped)
            for name, file in files.items()
            if not (blobs / file.blob).exists() and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
        }
        before, began = listing.present(), time.monotonic()
        if pending:
            log(f"{listing.name}: {gigabytes(listing.size - before)} of {gigabytes(listing.size)} to fetch")
        while pending:
            done, pending = wait(pending, _LOG_SECONDS, FIRST_EXCEPTION)
            for each in done:
                each.result()
            have = listing.present()
            rate = (have - before) / max(time.monotonic() - began, 1e-6)
            log(f"{listing.name}: {gigabytes(have)} of {gigabytes(listing.size)}, {rate / 1e6:.1f} MB/s")
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _fetch_blob(listing: Listing, name: str, file: HubFile, blob: Path, stopped: threading.Event) -> None:
    """Fetch one file's contents, from the byte on that an earlier try reached.

    Raises:
        HubError: the bytes have another sum than the hub says.
        httpx.HTTPError: the connection breaks, or the hub is overloaded, time after time.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    partial, failed = partial_file(blob), 0
    while (have := partial.stat().st_size if partial.exists() else 0) < file.size and not stopped.is_set():
        try:
            _append(listing, name, partial, have, stopped)
        except (httpx.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in _TRIED_AGAIN:
                raise
            failed = 0 if partial.exists() and partial.stat().st_size > have else failed + 1
            if failed == _TRIES:
                raise
            stopped.wait(_WAIT_SECONDS * 2**failed)
    if stopped.is_set():
        return
    with partial.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.blob:
            partial.unlink()
            raise HubError(f"{listing.name}: {name} came in damaged and was removed; run the same command again")
    partial.rename(blob)


def _append(listing: Listing, name: str, partial: Path, have: int, stopped: threading.Event) -> None:
    from huggingface_hub import constants, hf_hub_url

    utils = _utils()
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    url = hf_hub_url(listing.name, name, revision=listing.commit, endpoint=constants.ENDPOINT)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # httpx takes the token out where the hub redirects to another host.
    with utils.get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        utils.hf_raise_for_status(response)
        with partial.open("ab" if response.status_code == 206 else "wb") as out:
            for block in response.iter_raw():
                out.write(block)
                if stopped.is_set():
                    return


def _link(listing: Listing) -> Path:
    """Fetch what is left, which is small, and return the snapshot."""
    from huggingface_hub import constants, snapshot_download

    revision = listing.revision or constants.DEFAULT_REVISION
    return Path(
        snapshot_download(
            listing.name,
            revision=revision,
            cache_dir=constants.HF_HUB_CACHE,
            endpoint=constants.ENDPOINT,
            allow_patterns=[glob.escape(name) for name in listing.files],
            tqdm_class=_silent_bar(),
        )
    )


def _utils() -> Any:
    """Return what huggingface_hub documents but does not declare as exported."""
    import huggingface_hub.utils

    return huggingface_hub.utils


def _silent_bar() -> Any:
    base: Any = _utils().tqdm

    class Silent(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent
