"""PaliGemma: a prompt sees all of itself, and what is to be predicted is marked by the type of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carevl.models.families.base import Family

if TYPE_CHECKING:
    from torch import Tensor


class PaliGemma(Family):
    """Tokens of type 0 see all others of that type, those of type 1 what stands before them."""

    def continue_inputs(self, name: str, values: Tensor, n_tokens: int) -> Tensor:
        more = super().continue_inputs(name, values, n_tokens)
        return more.new_ones(more.shape) if name == "token_type_ids" else more

    def count_positions(self, n_tokens: int) -> Tensor:
        return super().count_positions(n_tokens) + 1


FAMILIES = (PaliGemma("paligemma", joins=True, mixes_sizes=True),)
