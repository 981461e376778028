"""A judge behind an OpenAI-compatible endpoint, `http://HOST:PORT/v1#MODEL`, asked over HTTP.

A key, if the endpoint wants one, is taken from the environment variable `CAREVL_API_KEY` alone, so that no other
service's key is sent; it appears in no message, table or manifest.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from carevl.benchmarks.answering import Answer, go_on
from carevl.benchmarks.completion import prompt_tokens, read_completion
from carevl.benchmarks.forcing import CutJudgment, ForcedVerdict, write_value
from carevl.benchmarks.questions import GREEDY, Decoding
from carevl.errors import UserError
from carevl.judging import read_verdict
from carevl.judging.prompts import Task
from carevl.judging.turns import images_last
from carevl.judging.verdict_tokens import CHOICES, VERDICT_TEXTS
from carevl.models.chat_client import ChatClient, NoAnswerError
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.settings.asking import Asking

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Judge

KEY = "CAREVL_API_KEY"
_LIKELIEST = 20
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""Fields with which vLLM and SGLang go on with the last message, the judge's."""
_TRIALS = 3
_LEAST_TOKENS = 64
"""Room for the JSON of a verdict."""
_STATE: Mapping[Task, str] = {
    "pairwise": 'Your judgment was cut. Give its verdict alone, as JSON: {"verdict": 1} or {"verdict": 2}.',
    "pointwise": 'Your judgment was cut. Give its rating alone, from 1 to 5, as JSON, like {"rating": 3}.',
    "ranking": 'Your judgment was cut. Give its ranking alone, best first, as JSON, like {"ranking": [2, 1, 3]}.',
}
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
        self.client = ChatClient(base, KEY if os.environ.get(KEY) else None, judge.requests)
        self.max_tokens, self.asking = judge.max_tokens, judge.asking or Asking()
        self._gives_logprobs = "logprobs" not in judge.requests.omit
        self._continues: bool | None = None
        self._takes_schemas = True

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request, in their order; the reason in place of one that the endpoint refuses.

        An endpoint that refuses to return log-probabilities is asked without them.

        Raises:
            UserError: before it has answered any question, it cannot be reached, knows no such model, does not accept
                the key, or refuses a field; or a reply is to begin with given words, and it does not go on with one.
        """
        begun = [request for request in requests if request.response_prefix]
        if begun and not self._continues and (reason := self._why_not_continued(begun, logprob_texts)):
            raise UserError(
                f"verdict_prob: {self.client.url} does not go on with a verdict that is begun for it, as vLLM and "
                f"SGLang do: {reason}; use --protocol strict, which reads the probability in the judgment"
            )
        return self.client.ask_all(lambda request: self._request(request, decoding, logprob_texts), requests)

    def force(self, judgments: Sequence[CutJudgment]) -> list[ForcedVerdict | None]:
        """Return the verdict with which each reply goes on after its evidence, where the endpoint goes on with replies.

        Elsewhere the judge states it in a further turn, in the form of a schema where that is taken.
        """
        if self._continues is None:
            self._why_not_continued([cut.begun for cut in judgments], VERDICT_TEXTS)
        return go_on(self, judgments) if self._continues else self.client.ask_all(self._ask_verdict, judgments)

    def _ask_verdict(self, cut: CutJudgment) -> ForcedVerdict | None:
        max_tokens = max(self.max_tokens, _LEAST_TOKENS)
        fields = self._fields(cut.request, GREEDY, max_tokens)
        said = [{"role": "assistant", "content": cut.text}] if cut.text else []
        fields["messages"] = [*fields["messages"], *said, {"role": "user", "content": _STATE[cut.task]}]
        form = {"response_format": _response_format(cut.task, cut.shown)} if self._takes_schemas else {}
        try:
            reply = self.client.complete({**fields, **form}, optional=form)
        except NoAnswerError as error:
            if error.field not in form:
                return None
            self._takes_schemas = False
            return self._ask_verdict(cut)
        answer = read_completion(reply, max_tokens)
        if isinstance(answer, str):
            return None
        value = read_verdict(answer.text, cut.task, cut.shown, answer.truncated).value
        return None if value is None else ForcedVerdict(write_value(cut.task, value, cut.evidence))

    def _request(self, request: GenerationRequest, decoding: Decoding, logprob_texts: Sequence[str]) -> Answer:
        max_tokens = decoding.max_tokens or self.max_tokens
        try:
            reply, read = self._complete(self._fields(request, decoding, max_tokens), logprob_texts)
        except NoAnswerError as error:
            return str(error)
        answer = read_completion(reply, max_tokens, read)
        if isinstance(answer, str):
            return self.client.quote(answer)
        # Where tokens hold the spaces before them, services differ in whether the first one keeps its own.
        return replace(answer, text=f" {answer.text.lstrip()}") if request.response_prefix else answer

    def _complete(self, fields: Mapping[str, Any], logprob_texts: Sequence[str]) -> tuple[Any, Sequence[str]]:
        """Return the reply to a request, and the texts whose log-probabilities it was asked for: none if it refuses.

        Raises:
            NoAnswerError, UserError: as `ChatClient.complete`.
        """
        read = logprob_texts if self._gives_logprobs else ()
        asked = {"logprobs": True, "top_logprobs": _LIKELIEST} if read else {}
        try:
            return self.client.complete({**fields, **asked}, optional=(*asked, *_CONTINUE)), read
        except NoAnswerError as error:
            if error.field not in asked:
                raise
            if self._gives_logprobs:
                _log.warning("%s: asked without log-probabilities, which it refuses: %s", self.client.url, error)
            self._gives_logprobs = False
            return self._complete(fields, logprob_texts)

    def _why_not_continued(self, begun: Sequence[GenerationRequest], logprob_texts: Sequence[str]) -> str | None:
        """Return why replies that are begun are not gone on with; None: they are. A few are tried."""
        reason: str | None = None
        for request in begun[:_TRIALS]:
            reason = self._try_continuing(self._fields(request, GREEDY, max_tokens=1), logprob_texts)
            self._continues = reason is None
            if self._continues:
                break
        return reason

    def _try_continuing(self, fields: Mapping[str, Any], logprob_texts: Sequence[str]) -> str | None:
        """Return why a reply is not gone on with, or not as it has to be, by two answers of a token; None: it is.

        A prompt that ends within a reply has fewer tokens than one where that reply is ended and another begins.
        """
        try:
            ended, _ = self._complete({name: fields[name] for name in fields if name not in _CONTINUE}, ())
            reply, read = self._complete(fields, logprob_texts)
        except NoAnswerError as error:
            return str(error)
        less, more = prompt_tokens(reply), prompt_tokens(ended)
        if less is None or more is None:
            return "it does not count the tokens of prompts, which would show it"
        if less >= more:
            return f"the prompt has {less} tokens with continue_final_message, and {more} without"
        answer = read_completion(reply, 1, read)
        return None if isinstance(answer, Generation) and answer.logprobs else "its answer has no log-probabilities"

    def _fields(self, request: GenerationRequest, decoding: Decoding, max_tokens: int) -> dict[str, Any]:
        """Return what a request says, apart from log-probabilities."""
        return {
            "model": self.model,
            "messages": self._messages(request),
            "max_tokens": max_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request.seed,
            **({"chat_template_kwargs": self.asking.template_kwargs} if self.asking.template_kwargs else {}),
            **(_CONTINUE if request.response_prefix else {}),
        }

    def _messages(self, request: GenerationRequest) -> list[dict[str, Any]]:
        """Return the turns of a request, as the judge is asked."""
        turns, images = request.turn.turns, iter(request.images)
        messages = []
        for turn in turns:
            parts = list(turn.parts())
            if len(turns) == 1 and not self.asking.image_first:
                parts = images_last(parts)
            content = [_as_content(_data_url(next(images)) if part is None else None, part) for part in parts]
            messages.append({"role": turn.role, "content": content})
        system = [] if self.asking.system is None else [{"role": "system", "content": self.asking.system}]
        begun = [{"role": "assistant", "content": request.response_prefix}] if request.response_prefix else []
        return [*system, *messages, *begun]


def _response_format(task: Task, shown: int) -> dict[str, Any]:
    """Return the field that binds a reply to the JSON of a verdict."""
    positions = {"type": "integer", "enum": [*range(1, shown + 1)]}
    name, value = {
        "pairwise": ("verdict", positions),
        "pointwise": ("rating", {"type": "integer", "enum": [*range(1, CHOICES + 1)]}),
        "ranking": ("ranking", {"type": "array", "items": positions}),
    }[task]
    schema = {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def _as_content(url: str | None, text: str | None) -> dict[str, Any]:
    return {"type": "text", "text": text} if url is None else {"type": "image_url", "image_url": {"url": url}}


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
