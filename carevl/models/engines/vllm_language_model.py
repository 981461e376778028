"""A language model in vLLM: log-probabilities of given texts, and of the tokens that may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.conversations import check_chat
from carevl.models.engines.card import find_card
from carevl.models.engines.parity import check_parity, find_text_reference, mean_log_likelihoods
from carevl.models.engines.vllm_start import shut_down, start_engine
from carevl.models.engines.vllm_window import nothing_left
from carevl.models.locate import loading_arguments, model_directory

if TYPE_CHECKING:
    from carevl.settings.models import Model


class VllmLanguageModel:
    """A causal language model with a chat template; the same calls as `CausalLanguageModel`.

    What texts begin with is computed once by the engine's cache of prefixes, but for likelihoods: vLLM computes a text
    anew whose own tokens it is asked about.

    Args:
        parity_tolerance: largest difference of the mean log-probability of a token (nats) from `CausalLanguageModel` on
            a small sample, as a share of the largest of them; None: not checked.

    Raises:
        UserError: the numbers of the sample differ by more; or the settings do not suit the model or the card.
    """

    def __init__(self, model: Model, parity_tolerance: float | None = None) -> None:
        from transformers import AutoTokenizer

        loading = loading_arguments(model)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_directory(model), **loading)
        check_chat(self.tokenizer, model.path)
        # The reference goes first, so that the engine finds the memory free.
        card = find_card()
        reference = None if parity_tolerance is None else find_text_reference(model, card.name if card else "CPU")
        self.engine = start_engine(model, "generate")
        self.limit: int = self.engine.llm_engine.vllm_config.model_config.max_model_len - 1
        """vLLM writes a token after every text."""
        if reference is not None and parity_tolerance is not None:
            check_parity(model.path, reference, mean_log_likelihoods(self), parity_tolerance)

    def log_likelihoods(self, jobs: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[float]]:
        """Return log p(response | prompt) in nats, summed over its tokens, of the responses to every prompt."""
        texts = [[*prompt, *response] for prompt, responses in jobs for response in responses]
        outputs = iter(self._run(texts, prompt_logprobs=0))
        return [[_sum(next(outputs), response) for response in responses] for _, responses in jobs]

    def next_log_probabilities(
        self, groups: Sequence[Sequence[Sequence[int]]], tokens: Sequence[int]
    ) -> list[list[list[float]]]:
        """Return the log-probability, in nats, that each of some tokens comes next, [group][text][token]."""
        outputs = iter(self._run([list(text) for group in groups for text in group], logprob_token_ids=list(tokens)))
        firsts = [[next(outputs).outputs[0].logprobs[0] for _ in group] for group in groups]
        return [[[first[token].logprob for token in tokens] for first in group] for group in firsts]

    def _run(self, texts: Sequence[list[int]], **asked: Any) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **asked)
        prompts = [{"prompt_token_ids": text} for text in texts]
        with nothing_left(self.engine):
            outputs: list[Any] = self.engine.generate(prompts, sampling, use_tqdm=False) if prompts else []
        return outputs

    def close(self) -> None:
        """End the engine; nothing can be asked after it."""
        shut_down(self.engine)


def _sum(output: Any, response: Sequence[int]) -> float:
    read = zip(output.prompt_logprobs[-len(response) :], response, strict=True)
    return float(sum(at_token[token].logprob for at_token, token in read))
