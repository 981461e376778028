"""A language model with transformers: what it makes of given texts, whose beginnings are computed once.

Nothing is generated: log-probabilities of responses that somebody wrote, and of the tokens that may come next. They do
not depend on what else is in the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from carevl.errors import UserError
from carevl.models.conversations import check_chat
from carevl.models.device import device
from carevl.models.packing import Packed, Tree, fill_rows, find_state, laid_out, pack
from carevl.models.reward_head import probe_ids
from carevl.models.reward_scorer import allowed_distance, relative_distance
from carevl.models.token_budget import TokenBudget
from carevl.models.tree_attention import TREES, NotSharedError

_log = logging.getLogger(__name__)

_LOGITS = 2**28
"""Most logits that exist at a time: 1 GiB in float32."""
_EXACT, _ROUNDED = 1e-4, 5e-2
"""Distance of logits with and without sharing that passes for rounding in any case, in float32 and in 16 bits."""


class CausalLanguageModel(TokenBudget):
    """A causal language model with a chat template, as `carevl.models.engines.base.LanguageModel` says.

    Args:
        model: a Hugging Face directory or hub id with safetensors.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_tokens: tokens that run at a time.
        max_model_len: longest text in tokens; the model's own limit holds too.
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        UserError: it has no chat template, or a slow tokenizer only.
        OSError: the directory lacks weights or configuration.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        batch_tokens: int = 8192,
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.batch_tokens = batch_tokens
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        check_chat(self.tokenizer, str(model))
        self.model, loaded = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(f"{model} lacks weights, such as {missing[0]}: it is not a whole language model")
        self.model.to(device()).eval()
        limits = [max_model_len, getattr(self.model.config.get_text_config(), "max_position_embeddings", None)]
        self.limit = min((limit for limit in limits if limit and limit > 0), default=2**31)
        self.shares = self._shares()

    def log_likelihoods(self, jobs: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[float]]:
        """Return log p(response | prompt) in nats, summed over its tokens, of the responses to every prompt.

        Args:
            jobs: token ids of a prompt and of the responses to it, none of which is empty.
        """
        trees = [Tree(prompt, responses) for prompt, responses in jobs]
        sums: list[list[float]] = [[] for _ in trees]
        for numbers, packed in self._rows(trees, [sum(map(len, tree.branches)) for tree in trees]):
            logits = self._logits(packed, packed.column)
            tokens = -cross_entropy(logits.float(), packed.target, reduction="none")
            n_branches = sum(len(place.ends) for place in packed.places)
            values = iter(tokens.new_zeros(n_branches).index_add(0, packed.branch, tokens).tolist())
            for number, place in zip(numbers, packed.places, strict=True):
                sums[number] += [next(values) for _ in place.ends]
        return sums

    def next_log_probabilities(
        self, groups: Sequence[Sequence[Sequence[int]]], tokens: Sequence[int]
    ) -> list[list[list[float]]]:
        """Return the log-probability, in nats, that each of some tokens comes next, [group][text][token].

        Args:
            groups: token ids of texts; those of a group share the work on what all of them begin with.
        """
        trees = [_tree(texts) for texts in groups]
        values: list[list[list[float]]] = [[] for _ in trees]
        for numbers, packed in self._rows(trees, [len(tree.branches) for tree in trees]):
            ends = torch.tensor([end - 1 for place in packed.places for end in place.ends], device=packed.ids.device)
            read = iter(log_softmax(self._logits(packed, ends).float(), -1)[:, list(tokens)].tolist())
            for number, place in zip(numbers, packed.places, strict=True):
                values[number] += [next(read) for _ in place.ends]
        return values

    def _rows(self, trees: Sequence[Tree], read: Sequence[int]) -> Iterator[tuple[list[int], Packed]]:
        """Yield rows of trees with the number of each tree in it; where nothing is shared, every text by itself.

        Args:
            read: of every tree, the places at which logits are read.
        """
        if not self.shares:
            for number, tree in enumerate(trees):
                for branch in tree.branches:
                    yield [number], pack([Tree(tree.prefix, [branch])], self.model).to(self.model.device)
            return
        most = max(1, _LOGITS // self.model.config.get_text_config().vocab_size)
        costs = [
            max(tree.tokens, -(-places * self.batch_tokens // most)) for tree, places in zip(trees, read, strict=True)
        ]
        for row in fill_rows(costs, self.batch_tokens):
            yield row, pack([trees[number] for number in row], self.model).to(self.model.device)

    @torch.inference_mode()
    def _logits(self, packed: Packed, columns: Tensor) -> Tensor:
        """Return the logits at some columns of a row, [n_columns, n_vocabulary], by the whole model's forward pass.

        Some architectures scale or cap what their output matrix gives, each in its own way.
        """
        # Without a mask, positions that begin anew would be taken for texts that do not see each other.
        inputs = {"input_ids": packed.ids, "attention_mask": torch.ones_like(packed.ids)}
        with laid_out(packed):
            output = self.model(**inputs, position_ids=packed.positions, logits_to_keep=columns, use_cache=False)
        logits: Tensor = output.logits[0]
        return logits

    def _shares(self) -> bool:
        """Tell whether texts may share their beginnings: the architecture is asked, and then a tree is tried."""
        before = self.model.config._attn_implementation
        try:
            if state := find_state(self.model):
                raise NotImplementedError(f"it has {state}, which runs over the tokens from left to right")
            ids = probe_ids(self.model, 24, 2)
            ids[1, :12] = ids[0, :12]
            first, second = ids.tolist()
            apart = [pack([Tree(text, [[]])], self.model).to(self.model.device) for text in (first, second)]
            leaking = pack([Tree([*first, *second[12:]], [[]])], self.model).to(self.model.device)
            expected = torch.cat([self._logits(packed, packed.ids.new_tensor([23])) for packed in apart])
            leaked = self._logits(leaking, leaking.ids.new_tensor([35]))
            self.model.set_attn_implementation(TREES)
            packed = pack([_tree([first, second])], self.model).to(self.model.device)
            shared = self._logits(packed, packed.ids.new_tensor([end - 1 for end in packed.places[0].ends]))
            off, least = relative_distance(shared, expected), _EXACT if shared.dtype == torch.float32 else _ROUNDED
            if off <= allowed_distance(0.0, relative_distance(leaked, expected[1:]), least):
                return True
            reason = f"logits with and without sharing are {off:.3g} of their norm apart"
        except (NotImplementedError, NotSharedError, TypeError) as error:
            reason = str(error)
        self.model.set_attn_implementation(before)
        _log.warning("no prefixes are shared: %s", reason)
        return False


def _tree(texts: Sequence[Sequence[int]]) -> Tree:
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    prefix = [tokens[0] for tokens in alike]
    return Tree(prefix, [text[len(prefix) :] for text in texts])
