"""What a computation would take of memory, counted on the meta device: shapes are computed, numbers are not.

Everything that PyTorch makes is counted while it lives, so the peak is that of the code itself, whatever it keeps for
the backward pass or frees on its way. Attention is counted as kernels do it that keep no scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

COUNTED = "carevl_counted"
"""Name in transformers of an attention that is only counted."""


class MemoryCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what is made inside, beyond what there was before; attention has to be `COUNTED`.

    Attributes:
        now: bytes of what lives.
        peak: the most that lived at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):  # views of what was there before are nothing new
                self._sizes.setdefault(value.untyped_storage()._cdata, 0)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _CountedAttention(torch.autograd.Function):
    """Keeps what flash attention keeps for its backward pass: queries, keys, values, the result, a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        del gradient
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **arguments: Any
) -> tuple[Tensor, None]:
    del module, attention_mask, arguments
    result: Tensor = _CountedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result.transpose(1, 2).contiguous(), None


def _no_mask(*arguments: Any, **more: Any) -> None:
    del arguments, more


ALL_ATTENTION_FUNCTIONS.register(COUNTED, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(COUNTED, _no_mask)


def count_forward(model: Any, tokens: int) -> int:
    """Return the bytes that a text model's forward pass over one row takes at its most, its result among them.

    Args:
        model: on the meta device, without a head.

    Raises:
        Exception: of any kind, where the architecture computes what shapes do not tell.
    """
    model.set_attn_implementation(COUNTED)
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with torch.no_grad(), MemoryCounter() as counter:
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        del states
    return int(counter.peak)
