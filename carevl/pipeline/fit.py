"""What every stage takes of a card, and what cannot fit there: computed before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carevl.models.engines import ENGINES
from carevl.models.engines.card import CONTEXT
from carevl.models.own_code import trust_own_code
from carevl.models.stored_weights import gigabytes
from carevl.settings.models import Expert

if TYPE_CHECKING:
    from carevl.models.footprint import Footprint
    from carevl.pipeline.downloads import ModelState
    from carevl.stages.base import LoadedModel

_NAMES = {"trained": "adapters", "optimizer": "optimiser"}
"""What parts of a footprint are called, where that is not their own name."""


@dataclass(frozen=True)
class Fit:
    """A model that a stage puts on a card, or on parts of several.

    Attributes:
        table: what the stage makes with it.
        weights: bytes of its weights on each card; None where nobody knows.
        footprint: all that it takes there; None where its configuration is not on this machine, or its engine does not
            say.
        room: bytes that it may take; None where the card is not known.
    """

    table: str
    loaded: LoadedModel
    weights: int | None
    footprint: Footprint | None
    room: float | None

    @property
    def needed(self) -> int | None:
        """Bytes that it takes at least."""
        return self.weights if self.footprint is None else self.footprint.total + CONTEXT

    def line(self) -> str:
        """Return what it takes, of what there is, and what takes it."""
        loaded = self.loaded
        room = "" if self.room is None else f" of {gigabytes(self.room)}"
        part = f", {loaded.gpus:g} of a card" if loaded.gpus < 1 else ""
        spread = f", a part of {loaded.spread}" if loaded.spread > 1 else ""
        role = "" if loaded.learns else ", the reference,"
        model = f"{loaded.setting}{role} {_form(loaded)}{part}{spread}"
        if self.footprint is None:
            least = "at least " if loaded.bits else ""
            weights = "unknown bytes" if self.weights is None else least + gigabytes(self.weights)
            return f"{self.table:16s} {weights}{room} for the weights of {model}"
        return f"{self.table:16s} {gigabytes(self.needed or 0)}{room} for {model}: {_parts(self.footprint)}"

    def problem(self) -> str | None:
        """Return why it cannot fit, and what would make it; None where it can, or nobody knows."""
        if self.room is None or self.needed is None or self.needed <= self.room:
            return None
        loaded = self.loaded
        left = f"{loaded.reservation} leaves it {gigabytes(self.room)}"
        if self.footprint is None or (self.weights or 0) > self.room:
            return (
                f"{self.table}: the weights of {loaded.setting} take {gigabytes(self.weights or 0)} of a card "
                f"{_form(loaded)}, and {left}; {_advise(loaded)}"
            )
        return (
            f"{self.table}: {loaded.setting} {_form(loaded)} takes {gigabytes(self.needed)} of a card "
            f"({_parts(self.footprint)}), and {left}; {_save(loaded)}{_advise(loaded)}"
        )


def find_fits(
    loaded: Sequence[tuple[str, LoadedModel]], states: Mapping[str, ModelState], card: int | None
) -> list[Fit]:
    """Return what every model takes that a stage puts on a card.

    Args:
        card: bytes of memory of a card, None where that is not known.
    """
    return [_fit(table, model, states[model.setting], card) for table, model in loaded if model.gpus]


def _fit(table: str, loaded: LoadedModel, state: ModelState, card: int | None) -> Fit:
    weights = state.weights
    size = None if weights is None else weights.loaded_as(loaded.dtype, loaded.bits) // loaded.spread
    room = None if card is None else card * min(loaded.gpus, 1.0)
    return Fit(table, loaded, size, None if state.directory is None else _footprint(loaded, state), room)


def _footprint(loaded: LoadedModel, state: ModelState) -> Footprint | None:
    assert state.directory is not None
    if loaded.training is not None:
        from carevl.training.footprint import training_footprint

        with trust_own_code(loaded.model.trust_remote_code):
            return training_footprint(state.directory, loaded.training, learns=loaded.learns)
    model = loaded.model
    scores = isinstance(model, Expert) and model.kind == "reward_model"
    return ENGINES[model.engine].footprint(model, str(state.directory), "pooling" if scores else "generate")


def _parts(footprint: Footprint) -> str:
    parts = {_NAMES.get(name, name): gigabytes(size) for name, size in footprint.parts().items()}
    unknown = ", activations not known" if footprint.activations is None else ""
    return ", ".join(f"{name} {size}" for name, size in parts.items()) + f", CUDA {gigabytes(CONTEXT)}{unknown}"


def _form(loaded: LoadedModel) -> str:
    return f"in {loaded.bits} bits" if loaded.bits else f"as {loaded.dtype}"


def _save(loaded: LoadedModel) -> str:
    """Return what would make activations take less, where a phase of training loads it."""
    training, phase = loaded.training, loaded.phase
    if training is None:
        return ""
    keeps = loaded.learns and not training.gradient_checkpointing
    checkpointing = f", set {phase}.gradient_checkpointing" if keeps else ""
    return f"lower {phase}.batch_tokens{checkpointing}, "


def _advise(loaded: LoadedModel) -> str:
    if loaded.gpus < 1:
        return f"raise {loaded.reservation}.num_gpus, or choose a smaller model or larger cards"
    return f"{loaded.relief}, or choose a smaller model or larger cards"
