"""What a head is: what stands between the last hidden states of a reward model and its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from carevl.settings.models import Model

Output = int | tuple[float, ...] | Literal["expected"]
"""Which of several outputs is the score: one by its number, all with a weight each, or the expected rating."""


@dataclass(frozen=True)
class HeadSettings:
    """What settings say about a head; None where they leave it to the model."""

    output: Output | None = None
    activation: str | None = None

    @classmethod
    def of(cls, model: Model) -> HeadSettings:
        """Return those of an expert."""
        output = getattr(model, "output", None)
        return cls(tuple(output) if isinstance(output, list) else output, getattr(model, "activation", None))


@dataclass(frozen=True)
class HeadTensors:
    """The stored tensors that a model's body does not take, and what else tells how they are meant.

    Attributes:
        shapes: of every one, by its name.
        hidden: numbers in a hidden state.
        config: the model's configuration.
        activation: the one between layers that settings name.
    """

    shapes: Mapping[str, Sequence[int]]
    hidden: int
    config: Any
    activation: str | None = None


@dataclass(frozen=True)
class FoundHead:
    """A head as it lies in a model's files.

    Attributes:
        kind: the name of its kind.
        tensors: those that it takes.
        outputs: numbers that it gives for a conversation.
        make: makes its module of its tensors, by name. The module maps states [n, hidden] to outputs [n, outputs]; with
            `reads_prompt` it takes the states where responses begin as well, [n, hidden].
        reads_prompt: whether it does.
    """

    kind: str
    tensors: tuple[str, ...]
    outputs: int
    make: Callable[[Mapping[str, Tensor]], nn.Module]
    reads_prompt: bool = False

    def __str__(self) -> str:
        """Return a few words for people."""
        outputs = "1 output" if self.outputs == 1 else f"{self.outputs} outputs"
        return f"{self.kind} ({', '.join(self.tensors)}), {outputs}"


class HeadKind(ABC):
    """A kind of head, found by the names and shapes of its tensors."""

    name: str

    @abstractmethod
    def find(self, stored: HeadTensors) -> FoundHead | None:
        """Return the head that lies among some tensors, None where it is of another kind.

        Raises:
            UserError: it is of this kind, and something is lacking that settings have to say.
        """
