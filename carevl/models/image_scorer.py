"""Scores of responses by models that see the image: by a head, or by the probability of Yes.

A vision-language reward model has a head that reads the last token of a conversation about an image. It lies beside a
model of any family, as `carevl.models.heads` finds it; Skywork-VL-Reward, for one, has a linear head `v_head.summary`
in a file of its own. Any other model is asked whether a response is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carevl.errors import UserError
from carevl.judging.turns import shift_places
from carevl.models.control_strings import encode_text
from carevl.models.conversations import Encoded
from carevl.models.engines.base import GenerationRequest, Generator, ScoringRequest, limit_tiles
from carevl.models.engines.image_text import ImageTextModel
from carevl.models.experts import questions
from carevl.models.heads.ending import Ending
from carevl.models.heads.outputs import choose_score
from carevl.models.judge_files import load_processor
from carevl.models.own_code import trust_own_code
from carevl.models.prompts import EncodedPrompts, ask_as, encode_with_row_errors, ensure_padding
from carevl.models.reward_head import load_reward_model
from carevl.models.row_errors import Failure, SomeRowsError

if TYPE_CHECKING:
    from torch import Tensor

    from carevl.models.heads import HeadSettings
    from carevl.settings.asking import Asking


class ImageRewardScorer(ImageTextModel):
    """A vision-language reward model: one raw score per response, higher is better, on a scale of its own.

    Args:
        model: the directory of a model with a head.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_size: conversations that are read at a time.
        max_model_len: tokens of a conversation and its image; None: no limit.
        max_image_tiles: as `ImageTextGenerator` takes it.
        settings: which of several outputs is the score, and what stands between layers of its head.
        asking: how conversations are written, such as their system turn; None: user turn and response alone.
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        UserError: as `read_layout`; or it is no vision-language model, or its head is of another kind.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        batch_size: int = 16,
        max_model_len: int | None = None,
        max_image_tiles: int | None = None,
        settings: HeadSettings | None = None,
        asking: Asking | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        with trust_own_code(trust_remote_code):
            processor = ask_as(load_processor(Path(model)), asking)
        ensure_padding(processor.tokenizer)
        limit_tiles(processor, max_image_tiles)
        parts = load_reward_model(model, dtype, settings, trust_remote_code=trust_remote_code)
        if parts.head is None or parts.layout.head is None or parts.layout.head.reads_prompt:
            raise UserError(f"{model}: its head ({parts.layout}) is not one that is read beside images")
        super().__init__(parts.model, processor, batch_size, max_model_len)
        self.head, self.output = parts.head.to(self.device), None if settings is None else settings.output
        self.ending = Ending.of(self.model.config)

    def score(self, requests: Sequence[ScoringRequest]) -> list[float]:
        """Return the raw score (logit) of each response, in their order.

        Raises:
            SomeRowsError: the processor refuses some, such as an image of one row of pixels, or they are longer than
                `max_model_len`; the others have their score in it.
        """
        scores: dict[int, float] = {}
        failures: dict[int, Failure] = {}
        for batch in self.batches(requests):
            first = [requests[same[0]] for same in batch]
            turns, images = [request.turn for request in first], [request.images for request in first]
            encoded, refused = encode_with_row_errors(self.processor, turns, images, self.family, self.max_model_len)
            failures |= {i: failure for number, failure in refused.items() for i in batch[number]}
            if encoded is None:
                continue
            values = iter(self._compute(self._ended(encoded)).tolist())
            for number, same in enumerate(batch):
                if number not in refused:
                    scores |= dict.fromkeys(same, next(values))
        if failures:
            raise SomeRowsError([scores.get(i) for i in range(len(requests))], failures)
        return [scores[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _compute(self, conversations: EncodedPrompts) -> Tensor:
        states = self.family.hidden_states(self.model, **self.inputs(conversations))[:, -1]
        outputs: Tensor = self.head(states.to(next(self.head.parameters()).dtype))
        return choose_score(outputs, self.output)

    def _ended(self, conversations: EncodedPrompts) -> EncodedPrompts:
        """Return conversations that end with the token that the head reads."""
        ended = [list(text.ids) for text in self.ending.apply([Encoded(ids) for ids in conversations.ids])]
        per_token = {
            name: [self._as_long(name, values, len(ids)) for values, ids in zip(rows, ended, strict=True)]
            for name, rows in conversations.per_token.items()
        }
        return EncodedPrompts(tuple(ended), per_token, conversations.images)

    def _as_long(self, name: str, values: Tensor, n_tokens: int) -> Tensor:
        more = n_tokens - len(values)
        if more <= 0:
            return values[:n_tokens]
        return torch.cat([values, self.family.continue_inputs(name, values, more)])


class YesScorer:
    """A vision-language model that is asked whether a response is right: log-odds of Yes over No, in nats.

    Args:
        engine: that runs it.

    Raises:
        UserError: its tokenizer begins Yes and No alike.
    """

    def __init__(self, engine: Generator) -> None:
        self.engine = engine
        self.yes, self.no = _distinct(engine)

    def score(self, requests: Sequence[ScoringRequest]) -> list[float]:
        """Return the log-odds of each response, in their order; errors as the engine's."""
        asked = [
            GenerationRequest(
                request.images,
                question,
                places=shift_places(request.places, questions.YES.index("{turn}")),
                earlier=request.earlier,
            )
            for request in requests
            for question in questions.ask_yes(request.prompt, [request.response])
        ]
        try:
            written = self.engine.generate(asked, max_tokens=1, logprob_texts=[*self.yes, *self.no])
        except SomeRowsError as partial:
            values = [None if each is None else self._odds(each.logprobs[0]) for each in partial.results]
            raise SomeRowsError(values, partial.failures) from None
        return [self._odds(each.logprobs[0]) for each in written]

    def reduce_batch_size(self) -> bool:
        """Make the engine need less memory at a time; False when it cannot."""
        reduce: bool = getattr(self.engine, "reduce_batch_size", lambda: False)()
        return reduce

    def _odds(self, logprobs: Sequence[float]) -> float:
        return questions.log_odds(logprobs[: len(self.yes)], logprobs[len(self.yes) :])


def _distinct(engine: Any) -> list[list[str]]:
    """Return the words for Yes and for No that a reply may begin with, of those that begin alike the first."""
    tokenizer = engine.processor.tokenizer
    words = [{encode_text(tokenizer, word)[0]: word for word in reversed(kind)} for kind in questions.WORDS]
    own = [[word for token, word in kind.items() if token not in other] for kind, other in (words, words[::-1])]
    if not all(own):
        raise UserError("its tokenizer writes Yes and No with the same first token; it cannot be asked for them")
    return own
