"""Kind `endpoint`: a model behind an OpenAI-compatible endpoint says which of two responses is better, in both orders.

The model names one letter; the log-probabilities of A and B at its first token give a margin. The mean over both
orders takes position bias out, and least squares over all pairs turn margins into one score per response.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from carevl.errors import SettingsError
from carevl.models.chat_client import ChatClient, NoAnswerError, check_encrypted
from carevl.models.experts.base import ExpertKind, RowScorer, TextRow
from carevl.models.row_errors import Failure, SomeRowsError, retry_and_bisect

if TYPE_CHECKING:
    from carevl.settings.models import Endpoint, Expert

PROMPT = (
    "{turn}\n\n"
    "Two responses to this follow. Which one is better: more correct, and more helpful?\n\n"
    "[Response A]\n{first}\n\n[Response B]\n{second}\n\n"
    "Answer with one letter, A or B, and nothing else."
)
_LIKELIEST = 20
_IMPOSSIBLE = -100.0
"""Log-probability below which services stop telling differences; some write -9999 for it."""


class _RowError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class EndpointJudge:
    """Scores of responses, in nats: the difference of two is the log-odds that one is better than the other.

    Args:
        model: the model's name at the endpoint.
        settings: where the endpoint is and how patiently it is asked; the key comes from the environment alone.

    Raises:
        UserError: the environment has no key, or the key would travel unencrypted to another machine.
    """

    def __init__(self, model: str, settings: Endpoint) -> None:
        self.model, self.settings = model, settings
        self.client = ChatClient(settings.url, settings.api_key_env, timeout=settings.timeout, retries=settings.retries)

    def score_rows(self, rows: Sequence[TextRow]) -> list[list[float]]:
        """Return one score per response of each (user turn, responses), in their order.

        Raises:
            SomeRowsError: the endpoint gave no verdict on some rows within their tries; the others are in it.
            UserError: the endpoint refuses the key, or does not know the model.
        """
        failures: dict[int, Failure] = {}
        results: list[list[float] | None] = [None] * len(rows)
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            for i, scores in enumerate(threads.map(self._row, rows)):
                if isinstance(scores, Failure):
                    failures[i] = scores
                else:
                    results[i] = scores
        if failures:
            raise SomeRowsError(results, failures)
        return [result for result in results if result is not None]

    def _row(self, row: TextRow) -> list[float] | Failure:
        turn, responses = row
        tries = itertools.count()
        margins = {}
        try:
            for i, j in itertools.combinations(range(len(responses)), 2):
                first = self._margin(PROMPT.format(turn=turn, first=responses[i], second=responses[j]), tries)
                second = self._margin(PROMPT.format(turn=turn, first=responses[j], second=responses[i]), tries)
                margins[i, j] = (first - second) / 2
        except NoAnswerError as error:
            return Failure("endpoint", str(error))
        except _RowError as error:
            return error.failure
        return least_squares(margins, len(responses))

    def _margin(self, prompt: str, tries: itertools.count[int]) -> float:
        """Return the log-odds of A over B. `tries` counts the row's failed requests."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": _LIKELIEST,
        }
        return _log_odds(self.client.complete(body, tries))


def least_squares(margins: Mapping[tuple[int, int], float], n: int) -> list[float]:
    """Return the scores with mean 0 whose differences fit the margins of all pairs best.

    A response's score is its mean margin over all n responses.

    Args:
        margins: of every (first, second) with first < second; positive favours first.
    """
    scores = [0.0] * n
    for (i, j), margin in margins.items():
        scores[i] += margin / n
        scores[j] -= margin / n
    return scores


def _log_odds(answer: Any) -> float:
    """Return the log-odds of A over B at the answer's first token.

    A letter that is not among the likeliest tokens counts as likely as the least of them: it is at most that.
    """
    try:
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = [(str(entry["token"]).strip(), max(float(entry["logprob"]), _IMPOSSIBLE)) for entry in likeliest]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _RowError("endpoint", "the answer has no log-probabilities of its first token") from None
    likelihoods = {letter: sum(math.exp(value) for token, value in logprobs if token == letter) for letter in "AB"}
    if not any(likelihoods.values()):
        raise _RowError("no verdict", "neither A nor B is among the likeliest first tokens")
    least = math.exp(min(value for _, value in logprobs))
    return math.log(likelihoods["A"] or least) - math.log(likelihoods["B"] or least)


class EndpointKind(ExpertKind):
    """`path` is the model's name at the address in `endpoint`."""

    name = "endpoint"

    def load(self, expert: Expert) -> RowScorer:
        """Open a client; nothing is sent yet."""
        judge = EndpointJudge(expert.path, _settings(expert))
        return lambda rows: retry_and_bisect(judge.score_rows, cast("Sequence[TextRow]", rows))

    def fingerprint(self, expert: Expert) -> str:
        """Return the address and the model's name: what the service computes cannot be seen from here."""
        return f"{_settings(expert).url} {expert.path}"

    def check(self, expert: Expert) -> None:
        """Refuse an expert without an address, or whose key would travel unencrypted; actors hold the key itself."""
        settings = _settings(expert)
        if settings.api_key_env is not None:
            check_encrypted(settings.url)


def _settings(expert: Expert) -> Endpoint:
    if expert.endpoint is None:
        raise SettingsError(f"expert {expert.name}: kind endpoint needs settings under endpoint, with its url")
    return expert.endpoint


KIND = EndpointKind()
