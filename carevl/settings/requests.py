"""How an OpenAI-compatible endpoint is asked: the fields of a request, and how patiently an answer is waited for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from carevl.settings.base import Strict

LOGPROBS = ("logprobs", "top_logprobs")
_CAREVL_WRITES = ("messages", "model", "n", "stream")


def is_endpoint(path: str) -> bool:
    """Whether a model is asked over HTTP."""
    return path.startswith(("http://", "https://"))


class Requests(Strict):
    """Requests to an OpenAI-compatible endpoint."""

    timeout: float = Field(60.0, gt=0, description="Seconds that an answer may take.")
    retries: int = Field(5, ge=0, description="Failed requests of a row that are tried again, with growing pauses.")
    concurrency: int = Field(8, ge=1, description="Rows that are asked about at a time, by each actor.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Name of the field that bounds the length of an answer."
    )
    omit: list[Literal["max_tokens", "temperature", "top_p", "seed", "logprobs"]] = Field(
        [], description="Fields that are not sent, since the endpoint refuses them."
    )
    extra_body: dict[str, Any] = Field(
        {}, description="Further fields of every request, such as {top_k: 1}; they replace those of the same name."
    )

    @property
    def computation(self) -> dict[str, Any]:
        """What changes the answers of a model, of the settings that are usually left alone; empty if they are."""
        omitted = {"omit": sorted(self.omit)} if self.omit else {}
        return omitted | ({"extra_body": self.extra_body} if self.extra_body else {})

    def fill(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a request that says what these fields say, in the names and with the fields set here."""
        names = {"max_tokens": self.max_tokens_field}
        omitted = {*self.omit, *(LOGPROBS if "logprobs" in self.omit else ())}
        return {names.get(name, name): value for name, value in fields.items() if name not in omitted} | self.extra_body

    def way_out(self, field: str) -> str:
        """Return how a field of `fill` is not sent."""
        if field in self.extra_body:
            return f"endpoint.extra_body sets {field}"
        if field == self.max_tokens_field:
            [other] = {"max_tokens", "max_completion_tokens"} - {field}
            return f"endpoint.max_tokens_field: {other} sends that in its place"
        if field == "chat_template_kwargs":
            return "asking.template_kwargs sends it"
        if field in LOGPROBS:
            return "endpoint.extra_body: {top_logprobs: 5} asks for fewer; without any there is nothing to read"
        return f"endpoint.omit: [{field}] leaves it out"

    @field_validator("extra_body")
    @classmethod
    def _leave_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [name for name in _CAREVL_WRITES if name in value]:
            raise ValueError(f"{', '.join(taken)} cannot be set: a request is about one row, and has one answer")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"it cannot be sent as JSON: {error}") from None
        return value


class JudgeRequests(Requests):
    """Questions of a benchmark to a judge behind an endpoint."""

    timeout: float = Field(600.0, gt=0, description="Seconds that an answer may take.")
    concurrency: int = Field(64, ge=1, description="Questions that are asked at a time.")
