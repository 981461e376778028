"""A judge behind an OpenAI-compatible endpoint, `http://HOST:PORT/v1#MODEL`, asked over HTTP.

A key, if the endpoint wants one, is taken from the environment variable `CAREVL_API_KEY` alone, so that no other
service's key is sent; it appears in no message, table or manifest.
"""

from __future__ import annotations

import base64
import io
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx

from carevl.benchmarks.answering import Answer
from carevl.benchmarks.asking import Decoding
from carevl.errors import UserError
from carevl.inference.transformers_engine import Ask, Generation

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "CAREVL_API_KEY"
_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_SECONDS = httpx.Timeout(600.0, connect=10.0)
_LIKELIEST = 20
_SHOWN = 200


class Endpoint:
    """Answers over HTTP, several at a time; busy answers (429, 5xx) and broken connections are tried again.

    Args:
        address: `URL#MODEL`; the URL ends where `/chat/completions` is added.
        max_tokens: longest judgment unless the protocol says otherwise.
        concurrency: requests in flight.

    Raises:
        UserError: the address names no model.
    """

    def __init__(self, address: str, max_tokens: int, concurrency: int) -> None:
        base, _, self.model = address.partition("#")
        if not self.model:
            raise UserError(f"{address}: name the model after the address, like {address}#MODEL")
        self.url = f"{base.rstrip('/')}/chat/completions"
        self.max_tokens, self.concurrency = max_tokens, concurrency

    def decoding(self, wanted: Decoding) -> Decoding:
        """Everything is done as wanted."""
        return wanted

    def answer(self, asks: Sequence[Ask], decoding: Decoding, watch: Sequence[str]) -> list[Answer]:
        """One answer per ask, in their order; one that the endpoint refuses is told as the reason.

        An endpoint that refuses to tell log-probabilities is asked without them.

        Raises:
            UserError: it cannot be reached, knows no such model, or does not accept the key; or a reply is to begin
                with given words, which such endpoints do not promise.
        """
        if any(ask.begun for ask in asks):
            raise UserError("verdict_prob: an endpoint cannot be made to begin its reply; use --protocol strict")
        headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
        with (
            httpx.Client(headers=headers, timeout=_SECONDS, follow_redirects=False) as client,
            ThreadPoolExecutor(self.concurrency) as threads,
        ):
            return list(threads.map(lambda ask: self._ask(client, ask, decoding, watch), asks))

    def _ask(self, client: httpx.Client, ask: Ask, decoding: Decoding, watch: Sequence[str]) -> Answer:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": _content(ask, decoding.image_first)}],
            "max_tokens": decoding.max_tokens or self.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": ask.seed,
            **({"logprobs": True, "top_logprobs": _LIKELIEST} if watch else {}),
        }
        reply = self._post(client, body)
        if isinstance(reply, str):
            return self._ask(client, ask, decoding, ()) if watch and "logprobs" in reply else reply
        try:
            [choice] = reply["choices"]
            text, truncated = choice["message"]["content"] or "", choice["finish_reason"] == "length"
            tokens = int((reply.get("usage") or {}).get("completion_tokens", 0))
            told = ((choice.get("logprobs") or {}).get("content") or []) if watch else []
            return Generation(text, tokens, truncated, tuple(_watched(token["top_logprobs"], watch) for token in told))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"not a chat completion ({type(error).__name__}: {error})"

    def _post(self, client: httpx.Client, body: Mapping[str, Any]) -> Any:
        """The reply's JSON, or why there is none."""
        failure = ""
        for attempt in range(_ATTEMPTS):
            asked_for = 0.0
            try:
                response = client.post(self.url, json=body)
                if response.status_code == 200:
                    return response.json()
                failure = f"status {response.status_code}: {_shown(response.text)}"
                if response.status_code in (401, 403, 404):
                    raise UserError(f"{self.url}: {failure}; check the address, the model and the key in {KEY}")
                if response.status_code != 429 and response.status_code < 500:
                    return failure
                asked_for = _seconds(response.headers.get("Retry-After"))
            except httpx.ConnectError as error:
                if attempt == _ATTEMPTS - 1:
                    raise UserError(f"{self.url} cannot be reached: {error}") from None
                failure = str(error)
            except (httpx.TransportError, ValueError) as error:
                failure = f"{type(error).__name__}: {error}"
            pause = _FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0)
            if attempt < _ATTEMPTS - 1:
                time.sleep(min(max(pause, asked_for), _LONGEST_PAUSE))
        return f"no answer in {_ATTEMPTS} attempts; the last: {failure}"


def _shown(text: str) -> str:
    """The beginning of an answer in one line, without the key that a server may have repeated."""
    key = os.environ.get(KEY)
    return " ".join((text.replace(key, "[key]") if key else text).split())[:_SHOWN]


def _seconds(retry_after: str | None) -> float:
    """What a Retry-After header asks for; 0 where it names a date or nothing."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def _content(ask: Ask, image_first: bool) -> list[dict[str, Any]]:
    text = {"type": "text", "text": ask.prompt}
    image = {"type": "image_url", "image_url": {"url": _data_url(ask.image)}}
    return [image, text] if image_first else [text, image]


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _watched(likeliest: Sequence[Mapping[str, Any]], watch: Sequence[str]) -> tuple[float, ...]:
    """Log-probability of each watched text at one token; a text that is not among the likeliest is impossible."""
    found = {each["token"]: float(each["logprob"]) for each in likeliest}
    return tuple(found.get(text, -math.inf) for text in watch)
