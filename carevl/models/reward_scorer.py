"""Scores of text reward models with transformers: what conversations share is computed once.

A causal model reads trees of consecutive conversations (`carevl.models.packing`), with nothing padded. A bidirectional
one, and one whose architecture or head does not allow sharing, reads batches of nearly equal length; a causal one whose
own code gives its scores, batches of equal length. A score does not depend on what else is in the batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from carevl.errors import UserError
from carevl.models.conversations import Conversation, Encoded, encode, too_long
from carevl.models.device import device
from carevl.models.heads import HeadSettings
from carevl.models.heads.ending import Ending
from carevl.models.heads.outputs import check_output, choose_score
from carevl.models.heads.reader import HeadReader
from carevl.models.packing import Tree, fill_rows, find_state, pack
from carevl.models.reward_head import RewardModelParts, is_bidirectional, load_reward_model, probe_ids
from carevl.models.row_errors import Failure, SomeRowsError
from carevl.models.token_budget import TokenBudget
from carevl.models.tree_attention import TREES, NotSharedError, branch_states

_log = logging.getLogger(__name__)

PROBE = ("How many circles are there?", "There are two.")
"""A short conversation that a model is tried with."""
_EXACT, _ROUNDED = 1e-4, 5e-2
"""Distance of states with and without sharing that passes for rounding in any case, in float32 and in 16 bits."""
_NOISE = 4.0
"""Times its own noise between batches that a model may be off when texts share a beginning."""
_SLACK = 1 / 16
"""Most padding of a text in a batch of nearly equal lengths, as a share of the longest."""


class RewardScorer(TokenBudget):
    """A text reward model: one raw score per conversation, higher is better, on a scale of its own.

    Args:
        model: the directory of a reward model.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_tokens: tokens that run at a time.
        max_model_len: longest conversation in tokens; the model's own limit holds too.
        settings: which of several outputs is the score, and what stands between layers of its head.
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        UserError: see `load_reward_model`; or a causal model has no chat template.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        batch_tokens: int = 8192,
        max_model_len: int | None = None,
        settings: HeadSettings | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        self.batch_tokens, self.settings = batch_tokens, settings or HeadSettings()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        parts = load_reward_model(model, dtype, self.settings, trust_remote_code=trust_remote_code)
        self.model: Any = parts.model.to(device())
        self.bidirectional = is_bidirectional(self.model)
        if not self.bidirectional and not self.tokenizer.chat_template:
            raise UserError(
                f"{model} has no chat template; wrap it in a Python class (kind: python), or choose another"
            )
        self.head: HeadReader | None = None
        self.ending = Ending()
        self._choose_head(parts)
        limits = [max_model_len, getattr(self.model.config.get_text_config(), "max_position_embeddings", None)]
        if self.bidirectional:
            limits.append(self.tokenizer.model_max_length)
        self.limit = min((limit for limit in limits if limit and limit > 0), default=2**31)
        self.shares = self.head is not None and not self.bidirectional and self._shares()

    def score(self, conversations: Sequence[Conversation | Encoded]) -> list[float]:
        """Return the raw score (logit) of each (user turn, response), in their order.

        Consecutive conversations that begin alike share the work on their beginning.

        Raises:
            SomeRowsError: conversations are longer than the model reads; the others have their score in it.
        """
        encoded = self.ending.apply(encode(self.tokenizer, conversations))
        failures: dict[int, Failure] = dict(too_long(encoded, self.limit))
        good = [i for i in range(len(encoded)) if i not in failures]
        scores = [math.nan] * len(encoded)
        if good:
            with torch.inference_mode():
                chosen = choose_score(self._compute([encoded[i] for i in good]), self.settings.output)
            for i, value in zip(good, chosen.tolist(), strict=True):
                scores[i] = value
        if failures:
            raise SomeRowsError([None if i in failures else score for i, score in enumerate(scores)], failures)
        return scores

    def _choose_head(self, parts: RewardModelParts) -> None:
        """Read the head that was found, or leave that to the model's own forward pass."""
        layout, path = parts.layout, self.tokenizer.name_or_path
        if self.bidirectional and not layout.is_whole:
            raise UserError(
                f"{path} is bidirectional, so that nobody knows which states its head ({layout}) reads, and its class "
                "does not take it; wrap it in a Python class (kind: python)"
            )
        if parts.head is not None and layout.head is not None and not self.bidirectional:
            self.head = HeadReader(layout.head, parts.head.to(device()), self.tokenizer)
            self.ending = Ending.of(self.model.config)
            if not (layout.is_remote and layout.is_whole) or self._agrees_with_own_code():
                return
            self.head, self.ending = None, Ending()
        outputs = self._own_outputs(encode(self.tokenizer, [PROBE]))
        try:
            check_output(outputs.shape[1], self.settings.output)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @torch.inference_mode()
    def _agrees_with_own_code(self) -> bool:
        """Tell whether the head gives what code that comes with the model gives, for a short conversation."""
        assert self.head is not None
        text = self.ending.apply(encode(self.tokenizer, [PROBE]))
        least = _EXACT if self.model.dtype == torch.float32 else _ROUNDED
        try:
            expected = self._own_outputs(text)
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            _log.warning("its own code does not run (%s), so its head is read without it", error)
            return True
        outputs = self.head.outputs(torch.cat([self._padded_states([each]) for each in self.head.sequences(text)]))
        if outputs.shape == expected.shape and relative_distance(outputs, expected) <= least:
            return True
        _log.warning("its own code reads its head otherwise, and is used: nothing is shared, nothing padded")
        return False

    def _compute(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Return the outputs [n, outputs] for conversations."""
        if self.head is None:
            return self._compute_apart(texts, self._own_outputs)
        return self.head.outputs(self._states(self.head.sequences(texts)))

    def _states(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Return the states of last tokens, [n, hidden]."""
        if not self.shares:
            return self._compute_apart(texts, self._padded_states)
        groups = list(_groups([text.ids for text in texts], self.batch_tokens))
        trees = [tree for tree, _ in groups]
        parts, places = [], []
        for row in fill_rows([tree.tokens for tree in trees], self.batch_tokens):
            packed = pack([trees[t] for t in row], self.model).to(self.model.device)
            parts.append(branch_states(self.model, packed))
            places += [place for t in row for place in groups[t][1]]
        return _ordered(parts, places)

    def _compute_apart(
        self, texts: Sequence[Encoded], compute: Callable[[Sequence[Encoded]], torch.Tensor]
    ) -> torch.Tensor:
        # Where a causal model's own code looks for the last token is not known, so nothing is padded for it.
        slack = 0.0 if self.head is None and not self.bidirectional else _SLACK
        batches = list(_alike([len(text.ids) for text in texts], self.batch_tokens, slack))
        parts = [compute([texts[i] for i in batch]) for batch in batches]
        return _ordered(parts, [i for batch in batches for i in batch])

    @torch.inference_mode()
    def _own_outputs(self, batch: Sequence[Encoded]) -> torch.Tensor:
        outputs: torch.Tensor = self.model(**self._inputs(batch)).logits
        return outputs.reshape(len(batch), -1)

    def _padded_states(self, batch: Sequence[Encoded]) -> torch.Tensor:
        hidden: torch.Tensor = self.model.base_model(**self._inputs(batch)).last_hidden_state
        return hidden[range(len(batch)), [len(text.ids) - 1 for text in batch]]

    def _inputs(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Return a batch padded at the right: a causal model does not see padding, a bidirectional one gets a mask."""
        padding = self.model.config.get_text_config().pad_token_id or 0
        ids = torch.full((len(batch), max(len(tokens.ids) for tokens in batch)), padding)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
            mask[row, : len(tokens.ids)] = 1
            types[row, : len(tokens.ids)] = torch.tensor(tokens.types or [0])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if batch[0].types is not None:
            inputs["token_type_ids"] = types
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _last_states(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the states that the head reads, of texts of one length in the model's own attention."""
        more = {} if positions is None else {"position_ids": positions.to(ids.device)}
        # Without a mask, positions that begin anew would be taken for texts that do not see each other.
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}
        states: torch.Tensor = self.model.base_model(**inputs).last_hidden_state[:, -1]
        return states

    def _shares(self) -> bool:
        """Tell whether conversations may share their beginnings.

        The architecture is asked, and then a tree is tried against the model's own forward pass.
        """
        before = self.model.config._attn_implementation
        try:
            if state := find_state(self.model):
                raise NotImplementedError(f"it has {state}, which runs over the tokens from left to right")
            if "chunked_attention" in (getattr(self.model.config, "layer_types", None) or ()):
                raise NotImplementedError("its attention goes by chunks, which are counted from the start of a row")
            ids = probe_ids(self.model, 24, 3)
            ids[1, :12] = ids[0, :12]
            tree = Tree(ids[0, :12].tolist(), [ids[0, 12:].tolist(), ids[1, 12:].tolist()])
            both = torch.cat([ids[0], ids[1, 12:]])[None], torch.tensor([[*range(24), *range(12, 24)]])
            with torch.inference_mode():
                expected, leaked = self._last_states(ids[:2]), self._last_states(*both)
                alone = torch.cat([self._last_states(row[None]) for row in ids[:2]])
                self.model.set_attn_implementation(TREES)
                packed = pack([tree, Tree(ids[2].tolist(), [[]])], self.model).to(self.model.device)
                shared = branch_states(self.model, packed)[:2]
            off, noise = relative_distance(shared, expected), relative_distance(alone, expected)
            least = _EXACT if self.model.dtype == torch.float32 else _ROUNDED
            if off <= allowed_distance(noise, relative_distance(leaked, expected[1:]), least):
                return True
            reason = f"states with and without sharing are {off:.3g} of their norm apart"
        except (NotImplementedError, NotSharedError, TypeError) as error:
            reason = str(error)
        self.model.set_attn_implementation(before)
        _log.warning("no prefixes are shared: %s", reason)
        return False


def _ordered(parts: Sequence[torch.Tensor], places: Sequence[int]) -> torch.Tensor:
    """Return the rows of all parts, the row for place 0 first."""
    return torch.cat(list(parts))[torch.tensor(places).argsort()]


def relative_distance(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far states are from others, as a share of their norm: of the rows [n_rows, size], the farthest."""
    apart = (states.float() - expected.float()).norm(dim=-1)
    return float((apart / expected.float().norm(dim=-1)).max())


def allowed_distance(noise: float, leak: float, least: float) -> float:
    """Return the distance that rounding explains.

    Args:
        noise: distance of the same texts in other batches.
        leak: distance of a text that sees another's tokens; half of it is never rounding.
        least: distance that is allowed in any case.
    """
    return min(max(least, _NOISE * noise), leak / 2)


def _groups(texts: Sequence[Sequence[int]], most: int) -> Iterator[tuple[Tree, list[int]]]:
    """Yield trees of consecutive texts, of at most `most` tokens, each with its texts' positions.

    Texts stand in one tree where that saves tokens; what many of them share is not traded for what a few share.
    """
    shared = [*(_shared(a, b) for a, b in pairwise(texts)), 0]
    start = 0
    while start < len(texts):
        prefix, end = len(texts[start]), start + 1
        tokens = prefix
        while end < len(texts):
            # With one text more, all n + 1 share only `joint` tokens, and each of the n so far repeats the rest of
            # its prefix in its branch. Of two texts, the second rather begins a tree with the third if those share
            # more than twice as much.
            n, joint = end - start, min(prefix, shared[end - 1])
            joined = tokens + n * (prefix - joint) + len(texts[end]) - joint
            worth = (n + 1) * joint > n * prefix if n > 1 else 2 * joint >= shared[end]
            if not joint or not worth or joined > most:
                break
            prefix, tokens, end = joint, joined, end + 1
        branches = [texts[i][prefix:] for i in range(start, end)]
        yield Tree(texts[start][:prefix], branches), list(range(start, end))
        start = end


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    shorter = min(len(first), len(second))
    return next((n for n in range(shorter) if first[n] != second[n]), shorter)


def _alike(lengths: Sequence[int], most: int, slack: float) -> Iterator[list[int]]:
    """Yield positions in batches of nearly equal length and at most `most` tokens.

    Args:
        slack: most padding of a text, as a share of the longest.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else 0
        if batch and (longest - lengths[i] > longest * slack or (len(batch) + 1) * longest > most):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
