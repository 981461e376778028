"""A judge behind an OpenAI-compatible endpoint, `http://HOST:PORT/v1#MODEL`, asked over HTTP.

A key, if the endpoint wants one, is taken from the environment variable `CAREVL_API_KEY` alone, so that no other
service's key is sent; it appears in no message, table or manifest.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.benchmarks.answering import Answer
from carevl.benchmarks.completion import read_completion
from carevl.benchmarks.questions import Decoding
from carevl.errors import UserError
from carevl.models.chat_client import ChatClient, NoAnswerError
from carevl.models.engines.base import GenerationRequest
from carevl.settings.asking import Asking
from carevl.settings.requests import LOGPROBS, JudgeRequests

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Judge

KEY = "CAREVL_API_KEY"
_LIKELIEST = 20
_log = logging.getLogger(__name__)


class Endpoint:
    """Answers over HTTP, several at a time; busy answers (429, 5xx) and broken connections are tried again.

    Args:
        judge: its path is `URL#MODEL`; the URL ends where `/chat/completions` is added.

    Raises:
        UserError: the address names no model, or the key would travel unencrypted to another machine.
    """

    def __init__(self, judge: Judge) -> None:
        base, _, self.model = judge.path.partition("#")
        if not self.model:
            raise UserError(f"{judge.path}: name the model after the address, like {judge.path}#MODEL")
        requests = judge.endpoint or JudgeRequests()
        if "batch_size" in judge.pool.model_fields_set:  # said so before there was endpoint.concurrency
            requests = requests.model_copy(update={"concurrency": judge.pool.batch_size})
        self.client = ChatClient(base, KEY if os.environ.get(KEY) else None, requests)
        self.max_tokens, self.asking = judge.max_tokens, judge.asking or Asking()
        self._gives_logprobs = "logprobs" not in requests.omit

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request, in their order; the reason in place of one that the endpoint refuses.

        An endpoint that refuses to return log-probabilities is asked without them.

        Raises:
            UserError: before it has answered any question, it cannot be reached, knows no such model, does not accept
                the key, or refuses a field; or a reply is to begin with given words, which such endpoints do not
                promise.
        """
        if any(request.response_prefix for request in requests):
            raise UserError("verdict_prob: an endpoint cannot be made to begin its reply; use --protocol strict")
        return self.client.ask_all(lambda request: self._request(request, decoding, logprob_texts), requests)

    def _request(self, request: GenerationRequest, decoding: Decoding, logprob_texts: Sequence[str]) -> Answer:
        read = logprob_texts if self._gives_logprobs else ()
        max_tokens = decoding.max_tokens or self.max_tokens
        fields = {
            "model": self.model,
            "messages": self._messages(request, decoding.image_first),
            "max_tokens": max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request.seed,
            **({"logprobs": True, "top_logprobs": _LIKELIEST} if read else {}),
            **({"chat_template_kwargs": self.asking.template_kwargs} if self.asking.template_kwargs else {}),
        }
        try:
            answer = read_completion(self.client.complete(fields, optional=LOGPROBS), max_tokens, read)
            return self.client.quote(answer) if isinstance(answer, str) else answer
        except NoAnswerError as error:
            if not read or error.field not in LOGPROBS:
                return str(error)
            if self._gives_logprobs:
                _log.warning("%s: asked without log-probabilities, which it refuses: %s", self.client.url, error)
            self._gives_logprobs = False
            return self._request(request, decoding, logprob_texts)

    def _messages(self, request: GenerationRequest, image_first: bool) -> list[dict[str, Any]]:
        """Return the turns of a request, as the judge is asked."""
        text = {"type": "text", "text": request.prompt}
        image = {"type": "image_url", "image_url": {"url": _data_url(request.image)}}
        content = [image, text] if image_first and self.asking.image_first else [text, image]
        system = [] if self.asking.system is None else [{"role": "system", "content": self.asking.system}]
        return [*system, {"role": "user", "content": content}]


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
