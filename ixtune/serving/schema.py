"""Request bodies: the fields of OpenAI's chat completions that are supported, and a few more."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ixtune.layout import MAX_HD_NUM
from ixtune.serving.errors import ApiError, bad_request

MAX_DEPTH = 64
"""Maximum nesting of a body: JSON schemas of forms are far below it."""
MAX_VALUES = 50_000
"""Maximum number of values in a body; each takes some hundred bytes in memory."""
MAX_CHOICES = 8

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{},]")


class _Strict(BaseModel):
    # values are never converted: "0.5" is not a number
    model_config = ConfigDict(strict=True, extra="forbid")


class ImageUrl(_Strict):
    """An image by URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None  # the layout is chosen by hd_num


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image, or pages of a document, in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    # an answer of ours that is sent back as the client library holds it
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(_Strict):
    """What a stream holds besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Strict):
    """A named JSON schema."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(_Strict):
    """Body of `/v1/chat/completions`.

    Fields of OpenAI's that change the answer and are not listed here are refused. Those under "no effect" are
    accepted and do nothing.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    # beyond OpenAI's
    hd_num: int | None = Field(default=None, ge=1, le=MAX_HD_NUM)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    # accepted with the value that changes nothing
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    # no effect
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None


class LayoutRequest(_Strict):
    """Body of `/v1/layout`; see `ixtune.serving.layouts.describe`."""

    image: str
    model: str | None = None
    hd_num: int | None = Field(default=None, ge=1, le=MAX_HD_NUM)
    preview: int | None = Field(default=None, ge=16, le=2048)


_Body = TypeVar("_Body", bound=BaseModel)


def parse(body: bytes, kind: type[_Body]) -> _Body:
    """Read a body.

    Raises:
        ApiError: It is not JSON, nested too deeply, or has another form; the message names the field, never its value.
    """
    _require_small(body)
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise bad_request("the body is not valid JSON in UTF-8", code="invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explained(error) from None  # its text would repeat the values


def _require_small(body: bytes) -> None:
    """Refuse JSON that would take a hundred times its size in memory, before it is read."""
    depth = 0
    marks = _BRACKETS.findall(_STRINGS.sub(b"", body))
    for mark in marks[: MAX_VALUES + 1]:
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > MAX_DEPTH or len(marks) > MAX_VALUES:
            raise bad_request(
                f"the body is nested deeper than {MAX_DEPTH}, or has more than {MAX_VALUES:,} values",
                code="too_deep",
            )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _explained(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = re.sub(r"\.(?:str|list\[.*?\])(?=\.|$)", "", ".".join(map(str, first["loc"])))
    where = where.encode("ascii", "replace").decode()[:100]  # names of fields may be anything
    if first["type"] == "extra_forbidden":
        return bad_request(f"the field {where} is not supported; leave it out", where, "unsupported_parameter")
    return bad_request(f"{where}: {first['msg'][:200]}", where, "invalid_value")
