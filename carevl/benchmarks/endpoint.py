"""A judge behind an OpenAI-compatible endpoint, `http://HOST:PORT/v1#MODEL`, asked over HTTP.

A key, if the endpoint wants one, is taken from the environment variable `CAREVL_API_KEY` alone, so that no other
service's key is sent; it appears in no message, table or manifest.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from carevl.benchmarks.answering import Answer
from carevl.benchmarks.questions import Decoding
from carevl.errors import UserError
from carevl.models.chat_client import ChatClient, NoAnswerError
from carevl.models.engines.base import Generation, GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "CAREVL_API_KEY"
_RETRIES = 5
_SECONDS = 600.0
_LIKELIEST = 20


class Endpoint:
    """Answers over HTTP, several at a time; busy answers (429, 5xx) and broken connections are tried again.

    Args:
        address: `URL#MODEL`; the URL ends where `/chat/completions` is added.
        max_tokens: longest judgment unless the protocol says otherwise.
        concurrency: requests in flight.

    Raises:
        UserError: the address names no model, or the key would travel unencrypted to another machine.
    """

    def __init__(self, address: str, max_tokens: int, concurrency: int) -> None:
        base, _, self.model = address.partition("#")
        if not self.model:
            raise UserError(f"{address}: name the model after the address, like {address}#MODEL")
        self.client = ChatClient(base, KEY if os.environ.get(KEY) else None, timeout=_SECONDS, retries=_RETRIES)
        self.max_tokens, self.concurrency = max_tokens, concurrency

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request, in their order; the reason in place of one that the endpoint refuses.

        An endpoint that refuses to return log-probabilities is asked without them.

        Raises:
            UserError: it cannot be reached, knows no such model, or does not accept the key; or a reply is to begin
                with given words, which such endpoints do not promise.
        """
        if any(request.response_prefix for request in requests):
            raise UserError("verdict_prob: an endpoint cannot be made to begin its reply; use --protocol strict")
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(lambda request: self._request(request, decoding, logprob_texts), requests))

    def _request(self, request: GenerationRequest, decoding: Decoding, logprob_texts: Sequence[str]) -> Answer:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": _content(request, decoding.image_first)}],
            "max_tokens": decoding.max_tokens or self.max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request.seed,
            **({"logprobs": True, "top_logprobs": _LIKELIEST} if logprob_texts else {}),
        }
        try:
            reply = self.client.complete(body)
        except NoAnswerError as error:
            if not error.reached:
                raise UserError(f"{self.client.url} cannot be reached: {error}") from None
            return self._request(request, decoding, ()) if logprob_texts and "logprobs" in str(error) else str(error)
        try:
            [choice] = reply["choices"]
            text, truncated = choice["message"]["content"] or "", choice["finish_reason"] == "length"
            tokens = int((reply.get("usage") or {}).get("completion_tokens", 0))
            positions = ((choice.get("logprobs") or {}).get("content") or []) if logprob_texts else []
            return Generation(
                text, tokens, truncated, tuple(_logprobs(token["top_logprobs"], logprob_texts) for token in positions)
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"not a chat completion ({type(error).__name__}: {error})"


def _content(request: GenerationRequest, image_first: bool) -> list[dict[str, Any]]:
    text = {"type": "text", "text": request.prompt}
    image = {"type": "image_url", "image_url": {"url": _data_url(request.image)}}
    return [image, text] if image_first else [text, image]


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _logprobs(likeliest: Sequence[Mapping[str, Any]], logprob_texts: Sequence[str]) -> tuple[float, ...]:
    """Return the log-probability of each text at one token; a text not among the likeliest is impossible."""
    logprobs = {each["token"]: float(each["logprob"]) for each in likeliest}
    return tuple(logprobs.get(text, -math.inf) for text in logprob_texts)
