"""What a model at work takes of its device's memory, by what takes it: computed from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device of one process, at their most.

    `trained`: adapters, or copies of the weights that are trained. `gradients` and `optimizer` are theirs, the latter
    with weights in float32 where training is in bfloat16. `cache`: keys and values. `activations` are None where an
    architecture computes what shapes do not tell.
    """

    weights: int
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int | None = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """Everything that is known of."""
        return sum(getattr(self, field.name) or 0 for field in fields(self))

    def parts(self) -> dict[str, int]:
        """Return what takes anything, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}
