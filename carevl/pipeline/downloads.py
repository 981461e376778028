"""The models of a run: where they are, and what of them is still to be downloaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.models.download import check_disk, find_missing, free_disk
from carevl.models.hub import HubError, Listing, find_snapshot
from carevl.models.locate import own_directory
from carevl.models.stored_weights import StoredWeights, gigabytes, read_stored_weights
from carevl.stages.rounds import all_stages

if TYPE_CHECKING:
    from carevl.settings.models import Model
    from carevl.settings.tree import Settings
    from carevl.stages.base import LoadedModel, Stage

_ASK_SECONDS = 5.0


def loaded_models(
    settings: Settings, tables: Collection[str], stages: Sequence[Stage] | None = None
) -> list[tuple[str, LoadedModel]]:
    """Return (table, model) for every model that is loaded to make some tables, in the order of the stages."""
    return [
        (table, loaded)
        for stage in stages or all_stages(settings)
        for table in stage.tables(settings)
        if table in tables
        for loaded in stage.models(settings, table)
    ]


def models_by_setting(
    settings: Settings, tables: Collection[str], stages: Sequence[Stage] | None = None
) -> dict[str, Model]:
    """Return the models that are loaded to make some tables, by the setting that names each."""
    return {loaded.setting: loaded.model for _, loaded in loaded_models(settings, tables, stages)}


@dataclass(frozen=True)
class ModelState:
    """A model as a plan finds it.

    `directory` is where it lies whole on this machine, `listing` what the hub has of it, `refusal` why the hub does not
    give it; all are empty where the hub does not answer.
    """

    model: Model
    is_hub: bool
    directory: Path | None = None
    listing: Listing | None = None
    refusal: str = ""

    @cached_property
    def weights(self) -> StoredWeights | None:
        """Its weights as they are stored; None where that is not known."""
        if self.directory is not None:
            return read_stored_weights(self.directory)
        return StoredWeights(self.listing.weight_bytes, self.listing.parameters) if self.listing else None

    def __str__(self) -> str:
        name = f"{self.model.path}@{self.model.revision or 'main'}"
        if self.listing is not None:
            have = self.listing.present()
            return f"{name}: {gigabytes(self.listing.size - have)} to fetch, {gigabytes(have)} in the cache"
        if self.directory is not None:
            size = sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())
            return f"{name}: nothing to fetch, {gigabytes(size)} in the cache"
        return f"{name}: {'the hub refuses it' if self.refusal else 'not in the cache'}"


def find_models(models: Mapping[str, Model]) -> dict[str, ModelState]:
    """Ask the cache, and the hub about what the cache lacks; nothing is fetched.

    A hub that does not answer is asked once.
    """
    states: dict[str, ModelState] = {}
    silent = False
    for setting, model in models.items():
        own = own_directory(model.path)
        if own is not None:
            states[setting] = ModelState(model, False, own)
            continue
        snapshot = find_snapshot(model.path, model.revision, code=model.trust_remote_code)
        state = ModelState(model, True, snapshot)
        if not silent:
            try:
                hub_model = (model.path, model.revision, model.trust_remote_code)
                listing = find_missing(hub_model, lambda _: None, timeout=_ASK_SECONDS)
                state = ModelState(model, True, snapshot if listing is None else None, listing)
            except HubError as error:
                silent = not error.reached
                state = ModelState(model, True, snapshot, refusal="" if silent else str(error))
        states[setting] = state
    return states


def download_lines(states: Mapping[str, ModelState]) -> Iterator[str]:
    """Yield a line for every model of the hub, and one about the disk; nothing where there is no such model."""
    hub = {setting: state for setting, state in states.items() if state.is_hub}
    yield from (f"{setting:16s} {state}" for setting, state in hub.items())
    if unknown := [
        setting for setting, state in hub.items() if not (state.directory or state.listing or state.refusal)
    ]:
        yield f"warning: the hub does not answer here, so that nobody knows the bytes of {', '.join(unknown)}"
    if hub:
        directory, free = free_disk()
        missing = sum(listing.size - listing.present() for listing in _listings(states))
        yield f"{'downloads':16s} {gigabytes(missing)} to fetch into {directory}, which has {gigabytes(free)} free"


def _listings(states: Mapping[str, ModelState]) -> list[Listing]:
    """Return what is to be fetched, each model once."""
    listings = [state.listing for state in states.values() if state.listing]
    return list({(listing.name, listing.commit): listing for listing in listings}.values())


def find_problems(states: Mapping[str, ModelState]) -> list[str]:
    """Return a sentence for every model that the hub does not give, and one where the disk is too small for all."""
    problems = [f"{setting}.path: {state.refusal}" for setting, state in states.items() if state.refusal]
    try:
        check_disk(_listings(states))
    except HubError as error:
        problems.append(str(error))
    return problems
