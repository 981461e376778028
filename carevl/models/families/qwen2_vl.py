"""Qwen2-VL and Qwen2.5-VL: images of any size, one token for every square of `merge_size` patches, positions in 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.families.base import Family, Picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Qwen2VL(Family):
    """The two differ inside the vision tower alone, which nothing here sees."""

    vision_tower = "model.visual"
    shares_prefixes = True

    def __init__(self, name: str) -> None:
        self.name = name

    def image_token(self, config: Any) -> int:
        token: int = config.image_token_id
        return token

    def count_image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        patches: int = image_processor.get_number_of_image_patches(height, width)
        return patches // int(image_processor.merge_size) ** 2

    def prepare(self, image_processor: Any, image: Image) -> Picture:
        prepared = image_processor(images=[image], return_tensors="pt")
        return Picture(prepared["pixel_values"], prepared["image_grid_thw"][0])

    def features(self, model: Any, patches: Tensor, grids: Tensor) -> Sequence[Tensor]:
        features: Sequence[Tensor] = model.base_model.get_image_features(patches, grids).pooler_output
        return features

    def positions(self, model: Any, ids: Tensor, grid: Tensor | None) -> Tensor:
        kinds = ids.eq(self.image_token(model.config)).int()
        positions: Tensor = model.base_model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)[0]
        return positions[:, 0]

    def image_inputs(self, model: Any, ids: Tensor, patches: Tensor, grids: Tensor) -> dict[str, Tensor]:
        kinds = ids.eq(self.image_token(model.config)).int()
        patches = patches.to(model.get_input_embeddings().weight.dtype)
        return {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": kinds}


FAMILIES = (Qwen2VL("qwen2_vl"), Qwen2VL("qwen2_5_vl"))
