"""Prints the mask of two packed trees, as `docs/training.md` shows it.

python tests/training/mask_picture.py
"""

from __future__ import annotations

import transformers as hf

from carevl.models.packing import Tree, dense_mask, pack

_TREES = (("P", 4, {"a": 2, "b": 3}), ("Q", 3, {"c": 2}))


def picture() -> str:
    """A line per token: its position, and a mark below every token that it sees."""
    names = "".join(p * n + "".join(b * k for b, k in branches.items()) for p, n, branches in _TREES)
    trees = [Tree([1] * n, [[2] * k for k in branches.values()]) for _, n, branches in _TREES]
    config = hf.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    packed = pack(trees, hf.LlamaForCausalLM(config))
    seen, positions = dense_mask(packed)[0, 0].tolist(), packed.positions[0].tolist()
    lines = [
        f"{name} {position:8d}   {' '.join('#' if cell else '.' for cell in row)}"
        for name, position, row in zip(names, positions, seen, strict=True)
    ]
    return "\n".join([f"  position   {' '.join(names)}", *lines])


if __name__ == "__main__":
    print(picture())
