"""Requests to an OpenAI-compatible endpoint: which failures are tried again, and what a key may be sent to.

A key comes from the environment alone, travels only over https or to this machine, and is in no message.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from carevl.errors import UserError

_WAIT, _LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first new try; doubled for each further one, half of it at random."""
_CONNECT_SECONDS = 10.0
_SHOWN = 200


class NoAnswerError(Exception):
    """The endpoint refused a request, or failed it as often as it may be tried; `reached` unless nothing was there."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class ChatClient:
    """Asks for chat completions; any number of threads may.

    Args:
        url: where `/chat/completions` is added.
        key: name of the environment variable with the endpoint's key; None: no key is sent.
        timeout: seconds that an answer may take.
        retries: failed requests that are tried again.

    Raises:
        UserError: the environment has no such key, or it would travel unencrypted to another machine.
    """

    def __init__(self, url: str, key: str | None, *, timeout: float, retries: int) -> None:
        self.url, self.retries = url.rstrip("/"), retries
        self._key = None
        if key is not None:
            self._key = os.environ.get(key)
            if not self._key:
                raise UserError(f"the environment has no {key}: set it to the key of {url}")
            check_encrypted(url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        self._client = httpx.Client(headers=headers, timeout=limits, follow_redirects=False)

    def complete(self, body: Mapping[str, Any], tries: Iterator[int] | None = None) -> Any:
        """Return the answer's JSON; busy answers (408, 409, 429, 5xx), broken connections, torn JSON are tried again.

        Args:
            tries: counts failed requests from 0, for requests that share one budget of tries.

        Raises:
            NoAnswerError: there is none.
            UserError: the endpoint does not accept the key, or knows no such model or address.
        """
        tries = itertools.count() if tries is None else tries
        while True:
            pause_requested, reached = 0.0, True
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
                if response.status_code == 200:
                    return response.json()
                problem = f"status {response.status_code}: {self._shown(response.text)}"
                if response.status_code in (401, 403, 404):
                    raise UserError(f"{self.url}: {problem}; check the address, the model {body['model']} and the key")
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    raise NoAnswerError(problem)
                pause_requested = _seconds(response.headers.get("Retry-After"))
            except (httpx.TransportError, ValueError) as error:
                problem = f"{type(error).__name__}: {self._shown(str(error))}"
                reached = not isinstance(error, httpx.ConnectError)
            tried = next(tries)
            if tried >= self.retries:
                raise NoAnswerError(f"{problem}; given up after {tried} more tries", reached=reached)
            pause = _WAIT * 2**tried * random.uniform(0.5, 1.0)
            time.sleep(min(max(pause, pause_requested), _LONGEST_WAIT))

    def _shown(self, text: str) -> str:
        """Return the beginning of an answer in one line, without the key that a server may have repeated."""
        return " ".join((text.replace(self._key, "[key]") if self._key else text).split())[:_SHOWN]


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
