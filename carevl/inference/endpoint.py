"""A model behind an OpenAI-compatible endpoint as a text judge: which of two responses is better, in both orders.

The model names one letter; the log-probabilities of A and B at its first token give a margin. The mean over both
orders takes position bias out, and least squares over all pairs turn margins into one score per response.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from carevl.errors import UserError
from carevl.inference.guarded import Failure, SomeRowsError

if TYPE_CHECKING:
    from carevl.config import Endpoint

PROMPT = (
    "{turn}\n\n"
    "Two responses to this follow. Which one is better: more correct, and more helpful?\n\n"
    "[Response A]\n{first}\n\n[Response B]\n{second}\n\n"
    "Answer with one letter, A or B, and nothing else."
)
_LIKELIEST = 20
_IMPOSSIBLE = -100.0
"""Log-probability below which services stop telling differences; some write -9999 for it."""
_WAIT = 0.5
"""Seconds before the first new try; doubled for each further one, half of it at random."""
_LONGEST_WAIT = 60.0


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
        headers = {}
        if settings.api_key_env is not None:
            key = os.environ.get(settings.api_key_env)
            if not key:
                raise UserError(f"the environment has no {settings.api_key_env}: set it to the key of {settings.url}")
            if not _private(settings.url):
                raise UserError(f"{settings.url} is not encrypted: a key is only sent over https, or to this machine")
            headers["Authorization"] = f"Bearer {key}"
        self.client = httpx.Client(base_url=settings.url.rstrip("/") + "/", headers=headers, timeout=settings.timeout)

    def score_rows(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """One score per response of each (user turn, responses), in their order.

        Raises:
            SomeRowsError: the endpoint gave no verdict on some rows within their tries; the others are in it.
            UserError: the endpoint refuses the key, or does not know the model.
        """
        failures: dict[int, Failure] = {}
        results: list[list[float] | None] = [None] * len(rows)
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            for i, made in enumerate(threads.map(self._row, rows)):
                if isinstance(made, Failure):
                    failures[i] = made
                else:
                    results[i] = made
        if failures:
            raise SomeRowsError(results, failures)
        return [result for result in results if result is not None]

    def relieve(self) -> bool:
        """There is no memory here to free."""
        return False

    def _row(self, row: tuple[str, Sequence[str]]) -> list[float] | Failure:
        turn, responses = row
        tries = itertools.count()
        margins = {}
        try:
            for i, j in itertools.combinations(range(len(responses)), 2):
                first = self._margin(PROMPT.format(turn=turn, first=responses[i], second=responses[j]), tries)
                second = self._margin(PROMPT.format(turn=turn, first=responses[j], second=responses[i]), tries)
                margins[i, j] = (first - second) / 2
        except _RowError as error:
            return error.failure
        return least_squares(margins, len(responses))

    def _margin(self, prompt: str, tries: itertools.count[int]) -> float:
        """Log-odds of A over B. `tries` counts the row's failed requests."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": _LIKELIEST,
        }
        while True:
            wait = None
            try:
                answer = self.client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}"
            else:
                if answer.status_code == 200:
                    return _log_odds(answer)
                problem = f"HTTP {answer.status_code}"
                if answer.status_code in (401, 403, 404):
                    raise UserError(
                        f"{self.settings.url} says {problem} for {self.model}: check address, model and key"
                    )
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    raise _RowError("endpoint", f"{problem}: the endpoint does not take this row")
                wait = _asked_wait(answer.headers)
            tried = next(tries)
            if tried >= self.settings.retries:
                raise _RowError("endpoint", f"{problem}, after {tried} more tries; the row's budget is spent")
            backoff = min(_WAIT * 2**tried, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
            time.sleep(backoff if wait is None else min(wait, _LONGEST_WAIT))


def least_squares(margins: Mapping[tuple[int, int], float], n: int) -> list[float]:
    """Scores with mean 0 whose differences fit the margins of all pairs best: the mean margin over all n responses.

    Args:
        margins: of every (first, second) with first < second; positive favours first.
    """
    scores = [0.0] * n
    for (i, j), margin in margins.items():
        scores[i] += margin / n
        scores[j] -= margin / n
    return scores


def _log_odds(answer: httpx.Response) -> float:
    """A letter that is not among the likeliest tokens counts as likely as the least of them: it is at most that."""
    try:
        likeliest = answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(one["token"]).strip(), max(float(one["logprob"]), _IMPOSSIBLE)) for one in likeliest]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _RowError("endpoint", "the answer has no log-probabilities of its first token") from None
    chances = {letter: sum(math.exp(value) for token, value in found if token == letter) for letter in "AB"}
    if not any(chances.values()):
        raise _RowError("no verdict", "neither A nor B is among the likeliest first tokens")
    least = math.exp(min(value for _, value in found))
    return math.log(chances["A"] or least) - math.log(chances["B"] or least)


def _asked_wait(headers: httpx.Headers) -> float | None:
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _private(url: str) -> bool:
    """Whether nobody else can read what is sent to an address."""
    parts = urlsplit(url)
    try:
        local = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    return parts.scheme == "https" or local
