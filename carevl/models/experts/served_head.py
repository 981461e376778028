"""Scores of a reward model that vLLM or SGLang serves: of a head that no engine here has to load.

| `api` | request | the score is in |
|---|---|---|
| `classify` | vLLM's `/classify` | `data[0].probs`, without activation |
| `pooling` | vLLM's `/pooling`, task `classify` | `data[0].data`, without activation |
| `embeddings` | SGLang's `/v1/embeddings` of a model started with `--is-embedding` | `data[0].embedding` |

vLLM's are in `vllm/entrypoints/pooling/*/protocol.py` (0.29).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.chat_client import ChatClient, NoAnswerError
from carevl.models.conversations import Conversation, Encoded, encode, messages_of
from carevl.models.heads import HeadSettings
from carevl.models.heads.outputs import check_output, choose_score
from carevl.models.locate import loading_arguments, own_directory
from carevl.models.own_code import explain_loading_of
from carevl.models.row_errors import Failure, SomeRowsError

if TYPE_CHECKING:
    from carevl.settings.models import Endpoint, Expert

_FIELDS = {"classify": "probs", "pooling": "data", "embeddings": "embedding"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "classify": {"use_activation": False},
    "pooling": {"task": "classify", "use_activation": False},
    "embeddings": {},
}


class ServedHead:
    """A served reward model; the same calls as `RewardScorer`.

    Args:
        expert: `path` is the model's name there; `output` says which of several outputs is the score.
        settings: where it is served, by which API, and the tokenizer of what is sent.

    Raises:
        UserError: as `ChatClient`.
    """

    def __init__(self, expert: Expert, settings: Endpoint) -> None:
        self.model, self.api, self.output = expert.path, settings.api, HeadSettings.of(expert).output
        self.client = ChatClient(settings.url, settings.api_key_env, settings)
        self.tokenizer: Any = None
        if settings.tokenizer is not None:
            from transformers import AutoTokenizer

            path = own_directory(settings.tokenizer) or settings.tokenizer
            with explain_loading_of(expert):
                self.tokenizer = AutoTokenizer.from_pretrained(path, **loading_arguments(expert))

    def score(self, conversations: Sequence[Conversation | Encoded]) -> list[float]:
        """Return the raw score of each (user turn, response), in their order.

        Raises:
            SomeRowsError: the service has none for some; the others are in it.
            UserError: it cannot be reached, or serves something else: several outputs, of which settings name none.
        """
        scores = self.client.ask_all(self._ask, conversations)
        failures = {i: score for i, score in enumerate(scores) if isinstance(score, Failure)}
        if failures:
            raise SomeRowsError([None if i in failures else score for i, score in enumerate(scores)], failures)
        return [score for score in scores if isinstance(score, float)]

    def _ask(self, conversation: Conversation | Encoded) -> float | Failure:
        fields = {"model": self.model, **self._say(conversation), **_OPTIONS[self.api]}
        try:
            outputs = _outputs(self.client.complete(fields, path=self.api), _FIELDS[self.api])
        except NoAnswerError as error:
            return Failure("endpoint", str(error))
        if outputs is None:
            return Failure("endpoint", f"the answer has no numbers in data[0].{_FIELDS[self.api]}")
        check_output(len(outputs), self.output)
        import torch

        return float(choose_score(torch.tensor([outputs]), self.output))

    def _say(self, conversation: Conversation | Encoded) -> dict[str, Any]:
        if self.tokenizer is not None:
            [encoded] = encode(self.tokenizer, [conversation])
            return {"input": list(encoded.ids)}
        assert not isinstance(conversation, Encoded)
        return {"messages": messages_of(*conversation)}


def _outputs(answer: Any, field: str) -> list[float] | None:
    """Return the outputs of a head in an answer, of which a list of one list may be made."""
    try:
        values = answer["data"][0][field]
        if len(values) == 1 and isinstance(values[0], list):
            [values] = values
        outputs = [float(value) for value in values]
    except (LookupError, TypeError, ValueError):
        return None
    return outputs if outputs and all(map(math.isfinite, outputs)) else None
