"""Kind `endpoint`: a model behind an OpenAI-compatible endpoint says which of two responses is better, in both orders.

The log-probabilities of A and B at its first token give a margin (`carevl.models.experts.questions`); or those of Yes
and No, with kind `llm` and `scoring: yes`. With another `api` than chats it serves a reward model, whose head scores
(`carevl.models.experts.served_head`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from carevl.errors import SettingsError
from carevl.models.chat_client import ChatClient, NoAnswerError, check_encrypted
from carevl.models.conversations import as_text
from carevl.models.experts import questions
from carevl.models.experts.base import ExpertKind, RowScorer, TextRow, score_by_row
from carevl.models.experts.questions import IMPOSSIBLE
from carevl.models.experts.served_head import ServedHead
from carevl.models.row_errors import NOT_FINITE, Failure, SomeRowsError, retry_and_bisect

if TYPE_CHECKING:
    from carevl.settings.models import Endpoint, Expert

_LIKELIEST = 20


class _RowError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class EndpointJudge:
    """Scores of responses, in nats: the difference of two is the log-odds that one is better than the other.

    Args:
        model: the model's name at the endpoint.
        scoring: whether it is asked about each response, or about pairs.
        settings: where the endpoint is and how patiently it is asked; the key comes from the environment alone.

    Raises:
        UserError: the environment has no key, or the key would travel unencrypted to another machine.
    """

    def __init__(self, model: str, settings: Endpoint, scoring: Literal["yes", "pairwise"] = "pairwise") -> None:
        self.model, self.settings, self.scoring = model, settings, scoring
        self.client = ChatClient(settings.url, settings.api_key_env, settings)

    def score_rows(self, rows: Sequence[TextRow]) -> list[list[float]]:
        """Return one score per response of each (user turn, responses), in their order.

        Raises:
            SomeRowsError: the endpoint gave no verdict on some rows within their tries; the others are in it.
            UserError: the endpoint cannot be reached, refuses the key or a field, or does not know the model.
        """
        failures: dict[int, Failure] = {}
        results: list[list[float] | None] = [None] * len(rows)
        for i, scores in enumerate(self.client.ask_all(self._row, rows)):
            if isinstance(scores, Failure):
                failures[i] = scores
            else:
                results[i] = scores
        if failures:
            raise SomeRowsError(results, failures)
        return [result for result in results if result is not None]

    def _row(self, row: TextRow) -> list[float] | Failure:
        turn, responses = as_text(row[0]), row[1]
        tries = itertools.count()
        try:
            if self.scoring == "yes":
                return [self._odds(asked, questions.WORDS, tries) for asked in questions.ask_yes(turn, responses)]
            asked = questions.ask_pairwise(turn, responses)
            return questions.score_pairs([self._odds(one, questions.LETTERS, tries) for one in asked])
        except NoAnswerError as error:
            return Failure("endpoint", str(error))
        except _RowError as error:
            return error.failure

    def _odds(self, prompt: str, words: Sequence[Sequence[str]], tries: itertools.count[int]) -> float:
        """Return the log-odds of the first words over the second. `tries` counts the row's failed requests."""
        fields = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": _LIKELIEST,
        }
        return _log_odds(self.client.complete(fields, tries), words)


def _log_odds(answer: Any, words: Sequence[Sequence[str]] = questions.LETTERS) -> float:
    """Return the log-odds of the first words over the second at the answer's first token.

    Words that are not among the likeliest tokens count as likely as the least of them: they are at most that.
    """
    try:
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in likeliest]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise _RowError("endpoint", "the answer has no log-probabilities of its first token") from None
    if odd := [value for _, value in logprobs if math.isnan(value) or value == math.inf]:
        raise _RowError(NOT_FINITE, f"the service gives {odd[0]} for a log-probability")
    logprobs = [(token, min(max(value, IMPOSSIBLE), -IMPOSSIBLE)) for token, value in logprobs]
    found = [[value for token, value in logprobs if token in kind] for kind in words]
    if not any(found):
        names = " nor ".join(kind[0] for kind in words)
        raise _RowError("no verdict", f"neither {names} is among the likeliest first tokens")
    least = min(value for _, value in logprobs)
    return questions.log_odds(found[0] or [least], found[1] or [least])


class EndpointKind(ExpertKind):
    """`path` is the model's name at the address in `endpoint`."""

    name = "endpoint"

    def load(self, expert: Expert) -> RowScorer:
        """Open a client; nothing is sent yet."""
        if _settings(expert).api != "chat":
            return score_by_row(ServedHead(expert, _settings(expert)))
        judge = EndpointJudge(expert.path, _settings(expert), "yes" if expert.scoring == "yes" else "pairwise")
        return lambda rows: retry_and_bisect(judge.score_rows, cast("Sequence[TextRow]", rows))

    def fingerprint(self, expert: Expert) -> str:
        """Return the address, the model's name and what changes its answers: what it computes cannot be seen here."""
        settings = _settings(expert)
        computation = [json.dumps(settings.computation, sort_keys=True)] if settings.computation else []
        return " ".join([settings.url, expert.path, *computation])

    def check(self, expert: Expert) -> None:
        """Refuse an expert without an address, or whose key would travel unencrypted; actors hold the key itself."""
        settings = _settings(expert)
        if settings.api != "chat" and (expert.kind != self.name or expert.scoring is not None):
            raise SettingsError(
                f"expert {expert.name}: api: {settings.api} gives the scores of a reward model; use kind: endpoint, "
                "and leave scoring out"
            )
        if settings.api_key_env is not None:
            check_encrypted(settings.url)


def _settings(expert: Expert) -> Endpoint:
    if expert.endpoint is None:
        raise SettingsError(f"expert {expert.name}: kind endpoint needs settings under endpoint, with its url")
    return expert.endpoint


KIND = EndpointKind()
