"""Requests to an OpenAI-compatible endpoint: which failures are tried again, and what a key may be sent to.

A key comes from the environment alone, travels only over https or to this machine, and is in no message.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from carevl.errors import UserError
from carevl.settings.requests import LOGPROBS, Requests

In = TypeVar("In")
Out = TypeVar("Out")
_WAIT, _LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first new try; doubled for each further one, half of it at random."""
_CONNECT_SECONDS = 10.0
_MOST_BYTES = 64 * 2**20
"""Of an answer: 20 log-probabilities of each of 30,000 tokens are less."""
_SHOWN = 200
_BUSY = (408, 409, 429)
_REFUSES_ALL = (401, 403, 404, 405, 501)
_REFUSING = re.compile(r"\b(?:not|un\w+|only|extra|invalid|cannot|deprecated)\b|n't\b", re.IGNORECASE)
"""Words with which endpoints refuse a field that they name; log-probabilities they refuse in any words."""


class NoAnswerError(Exception):
    """The endpoint refused a request, or failed it as often as it may be tried.

    `field` is one of the request that the refusal names, if it names one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ChatClient:
    """Asks for chat completions; any number of threads may.

    Args:
        url: where `/chat/completions`, or another path, is added.
        key: name of the environment variable with the endpoint's key; None: no key is sent.
        requests: the fields of a request, and how patiently an answer is waited for.

    Raises:
        UserError: `url` is no address, the environment has no such key, or it would travel unencrypted to another
            machine.
    """

    def __init__(self, url: str, key: str | None, requests: Requests) -> None:
        self.url, self.requests = url.rstrip("/"), requests
        self._key = None if key is None else _read_key(key, url)
        self._answered = False
        """Whether the endpoint has answered a question, so that another that it refuses fails alone."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Timeout(requests.timeout, connect=min(requests.timeout, _CONNECT_SECONDS))
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"{url} is no address: {error}") from None
        self._client = httpx.Client(headers=headers, timeout=limits, follow_redirects=False)

    def ask_all(self, ask: Callable[[In], Out], questions: Sequence[In]) -> list[Out]:
        """Return `ask` of each question, in their order, several at a time.

        Until the endpoint has answered one, the first is asked alone: what is wrong with all of them is found once.
        """
        alone = 0 if self._answered else 1
        first = [ask(question) for question in questions[:alone]]
        threads = ThreadPoolExecutor(self.requests.concurrency)
        try:
            return [*first, *threads.map(ask, questions[alone:])]
        finally:
            threads.shutdown(cancel_futures=True)

    def complete(
        self,
        fields: Mapping[str, Any],
        tries: Iterator[int] | None = None,
        *,
        optional: Collection[str] = (),
        path: str = "chat/completions",
    ) -> Any:
        """Return the answer's JSON; busy answers (408, 409, 429, 5xx), broken connections, torn JSON are tried again.

        Args:
            fields: of the request, in the names of OpenAI; the settings have the last word on them.
            tries: counts failed requests from 0, for requests that share one budget of tries.
            optional: fields that the caller may do without, if the endpoint refuses them.
            path: what is added to the address.

        Raises:
            NoAnswerError: there is none.
            UserError: that is so for every question: before it has answered any, the endpoint cannot be reached, does
                not accept the key, knows no such model or address, or refuses a field that is not optional.
        """
        tries = itertools.count() if tries is None else tries
        body = self.requests.fill(fields)
        while True:
            pause_requested, reached = 0.0, True
            try:
                response, text = self._post(path, body)
                if response.status_code == 200:
                    answer = json.loads(text)
                    self._answered = True
                    return answer
                problem = f"status {response.status_code}: {self.quote(text)}"
                if response.status_code not in _BUSY and (response.status_code < 500 or response.status_code == 501):
                    self._refuse(body, response, problem, text, optional)
                pause_requested = _seconds(response.headers.get("Retry-After"))
            except (httpx.RequestError, ValueError, RecursionError) as error:
                problem = f"{type(error).__name__}: {self.quote(str(error))}"
                reached = not isinstance(error, httpx.ConnectError)
            tried = next(tries)
            if tried >= self.requests.retries:
                self._give_up(f"{problem}; given up after {tried} more tries", reached)
            pause = _WAIT * 2**tried * random.uniform(0.5, 1.0)
            time.sleep(min(max(pause, pause_requested), _LONGEST_WAIT))

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[httpx.Response, str]:
        """Return the response and its text.

        Raises:
            NoAnswerError: it is too long.
            httpx.RequestError: there is none in time.
        """
        latest = time.monotonic() + self.requests.timeout
        data = bytearray()
        with self._client.stream("POST", f"{self.url}/{path}", json=body) as response:
            for piece in response.iter_bytes():
                data += piece
                if len(data) > _MOST_BYTES:
                    raise NoAnswerError(f"the answer has more than {_MOST_BYTES >> 20} MiB")
                if time.monotonic() > latest:
                    raise httpx.ReadTimeout(f"the answer had not ended after {self.requests.timeout:g} seconds")
        return response, data.decode("utf-8", "replace")

    def _refuse(
        self, body: Mapping[str, Any], response: httpx.Response, problem: str, text: str, optional: Collection[str]
    ) -> None:
        """Raise the error for a request that the endpoint does not take; errors as for `complete`."""
        field = _refused_field(body, text)
        general = f"check the address, the model {body['model']} and the key"
        if response.is_redirect:
            target = self.quote(response.headers.get("Location", ""))
            general = f"it redirects to {target}, where nothing is sent; give the address itself"
        elif field is not None:
            general = "" if field in optional else self.requests.way_out(field)
        elif response.status_code not in _REFUSES_ALL:
            general = ""
        message = f"{problem}; {general}" if general else problem
        if general and not self._answered:
            raise UserError(f"{self.url}: {message}")
        self._answered = self._answered or field is None
        raise NoAnswerError(message, field=field)

    def _give_up(self, problem: str, reached: bool) -> None:
        if not reached and not self._answered:
            raise UserError(f"{self.url} cannot be reached: {problem}")
        self._answered = True
        raise NoAnswerError(problem)

    def quote(self, text: str) -> str:
        """Return the beginning of an answer in one line that prints, without the key that it may repeat."""
        beginning = (text.replace(self._key, "[key]") if self._key else text)[: 8 * _SHOWN]
        return " ".join("".join(letter if letter.isprintable() else " " for letter in beginning).split())[:_SHOWN]


def _refused_field(body: Mapping[str, Any], text: str) -> str | None:
    """Return the field of a request that an endpoint refuses in these words; None: they name none."""
    words = text.replace(str(body["model"]), "")
    names = [name for name in body if name in LOGPROBS or _REFUSING.search(words)]
    places = {
        name: place.start()
        for name in names
        if name not in ("model", "messages")
        and (place := re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", words, re.IGNORECASE))
    }
    return min(places, key=places.__getitem__, default=None)


def _read_key(name: str, url: str) -> str:
    """Return the key in an environment variable; errors as for `ChatClient`."""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"the environment has no {name}: set it to the key of {url}")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{name} holds characters that no key has; set it to the key of {url}")
    check_encrypted(url)
    return key


def _seconds(retry_after: str | None) -> float:
    """Return the seconds that a Retry-After header asks for; 0 where it names a date or nothing."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def check_encrypted(url: str) -> None:
    """Refuse an address to which a key would travel in the clear.

    Raises:
        UserError: it is neither https nor this machine.
    """
    parts = urlsplit(url)
    try:
        local = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    if parts.scheme != "https" and not local:
        raise UserError(f"{url} is not encrypted: a key is only sent over https, or to this machine")
