"""What training knows of one vision-language architecture: all that stock transformers does not say for every model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """An image as the processor prepares it.

    `patches` float32 [n_patches, d]; `grid` int64 [3]: frames, rows and columns of patches. `features` [tokens, size]
    are what the vision tower makes of them, where that is known already; `patches` is empty then.
    """

    patches: Tensor
    grid: Tensor
    features: Tensor | None = None


class Family(ABC):
    """One vision-language architecture; `name` is the `model_type` in the config.json of its models.

    Shapes: I images of together P patches; a sequence of n tokens.
    """

    name: str
    vision_tower: str
    """Full name of the module that sees; `freeze_vision` freezes it and keeps adapters out of it."""
    shares_prefixes: bool
    """Whether branches give the same log-probabilities behind a shared prefix as behind one of their own."""

    images_are_embeddings: bool = True
    """Whether an image enters the language model as embeddings alone, so that they can be kept in its place."""

    @abstractmethod
    def image_token(self, config: Any) -> int:
        """Return the id of the token in whose places the features of an image stand."""

    @abstractmethod
    def count_image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Return how many such tokens an image of so many pixels takes."""

    @abstractmethod
    def prepare(self, image_processor: Any, image: Image) -> Picture:
        """Prepare an image for the vision tower."""

    @abstractmethod
    def features(self, model: Any, patches: Tensor, grids: Tensor) -> Sequence[Tensor]:
        """Run the vision tower over patches [P, d] and grids [I, 3]; return the features of each image, [tokens, d]."""

    def trains_vision(self, model: Any) -> bool:
        """Tell whether any weight of the vision tower is trained; else features are constants."""
        return any(weight.requires_grad for weight in model.get_submodule(self.vision_tower).parameters())

    @abstractmethod
    def positions(self, model: Any, ids: Tensor, grid: Tensor | None) -> Tensor:
        """Return the positions of a sequence, int64 [axes, n].

        Args:
            ids: int64 [1, n].
            grid: int64 [1, 3] of its image, None if it has none.
        """

    @abstractmethod
    def image_inputs(self, model: Any, ids: Tensor, patches: Tensor, grids: Tensor) -> dict[str, Tensor]:
        """Return what the model's own forward pass takes for the images of sequences `ids`, int64 [M, L]."""
