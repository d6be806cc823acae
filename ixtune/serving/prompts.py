"""Turn a chat request into a job for the engine: token ids, images with layouts, settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ixtune.answering.json_schema import JsonGrammar
from ixtune.answering.settings import Settings
from ixtune.data.record import Turn
from ixtune.data.rejects import RecordError
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.template import encode_prompt, expand
from ixtune.errors import UsageError
from ixtune.evaluation.questions import ImageView
from ixtune.serving.engine.models import Models, ServedModel
from ixtune.serving.errors import ApiError, bad_request, of_record
from ixtune.serving.grammars import Grammars
from ixtune.serving.images import ImageOpener, Opened, Picture
from ixtune.serving.schema import ChatRequest, Message, TextPart

DEFAULT_TOKENS = 1024
"""Maximum new tokens of a request without a limit."""
MAX_STOPS = 8
_STOP_CHARACTERS = 256
_CHARACTERS_PER_TOKEN = 32  # no piece of the vocabulary is longer


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that the engine can answer.

    Attributes:
        model: Which model.
        ids: Token ids of the prompt, the image token's at image positions.
        pictures: Its images, in order.
        settings: Generation settings.
        choices: Number of answers.
        seed: Random seed of the first answer.
        stop: Texts that end an answer.
        top_logprobs: Number of most likely tokens to report at each position; None for no log-probabilities.
        grammar: Grammar that the answers follow; None for free answers.
    """

    model: ServedModel
    ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    settings: Settings
    choices: int
    seed: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    grammar: JsonGrammar | None

    @property
    def image_tokens(self) -> int:
        """Number of image positions in the prompt."""
        return sum(picture.layout.tokens for picture in self.pictures)

    @property
    def nbytes(self) -> int:
        """Bytes of its images, as files and as crops."""
        return sum(picture.nbytes for picture in self.pictures)


def asked_of(
    request: ChatRequest, models: Models, opener: ImageOpener, grammars: Grammars, max_context: int, seed: int
) -> Asked:
    """Read a request: open its images, lay them out, and tokenize its messages.

    Args:
        request: The body.
        models: The loaded models.
        opener: Opens images.
        grammars: Compiles JSON schemas.
        max_context: Maximum number of tokens of prompt and answer.
        seed: Seed for a request without one.

    Raises:
        ApiError: A message or an image cannot be used, or there are too many tokens.
    """
    model = model_named(request.model, models)
    characters = sum(len(text) for text in _texts(request.messages))
    if characters > _CHARACTERS_PER_TOKEN * max_context:
        raise _too_long(f"a text of {characters:,} characters", max_context)
    max_pages = max_context // models.member.tokens(1, 1)  # more are too long in any layout
    turns, pictures = _turns(request, model.view, opener, max_pages)
    try:
        tokens = [picture.layout.tokens for picture in pictures]
        if sum(tokens) >= max_context:
            raise _too_long(f"{sum(tokens):,} image tokens", max_context)
        sample = encode_prompt(turns, tokens, models.tokenizer, member=models.member)
    except RecordError as error:
        raise of_record(error) from error
    ids, _ = expand(sample)
    settings = _settings(request, max_context - len(ids), len(ids), max_context)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    return Asked(
        model=model,
        ids=tuple(ids),
        pictures=tuple(pictures),
        settings=settings,
        choices=request.n or 1,
        seed=seed if request.seed is None else request.seed,
        stop=_stops(request.stop),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        grammar=grammars.of(request.response_format),
    )


def model_named(name: str | None, models: Models) -> ServedModel:
    """Return the model of this name; None for the first.

    Raises:
        ApiError: There is none.
    """
    if name is None:
        return next(iter(models.by_name.values()))
    found = models.by_name.get(name)
    if found is None:
        raise ApiError(
            404, f"there is no such model; this server has {', '.join(models.by_name)}", param="model",
            code="model_not_found",
        )  # fmt: skip
    return found


def _texts(messages: Sequence[Message]) -> list[str]:
    found = []
    for message in messages:
        if isinstance(message.content, str):
            found.append(message.content)
        else:
            found += [part.text for part in message.content if isinstance(part, TextPart)]
    return found


def _turns(
    request: ChatRequest, view: ImageView, opener: ImageOpener, max_pages: int
) -> tuple[list[Turn], list[Picture]]:
    """Return turns with placeholders, and the images in their order."""
    turns: list[Turn] = []
    opened: list[tuple[Opened, str]] = []
    for number, message in enumerate(request.messages):
        where = f"messages.{number}.content"
        role = "system" if message.role == "developer" else message.role
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        text = ""
        for at, part in enumerate(parts):
            if isinstance(part, TextPart):
                if PLACEHOLDER in part.text:
                    raise bad_request(f"{where}: the text contains {PLACEHOLDER}; send an image_url part", where)
                text += ("\n" if text and not text.endswith(PLACEHOLDER) else "") + part.text
                continue
            place = f"{where}.{at}.image_url"
            if role != "user":
                raise bad_request(f"{place}: images are only allowed in user messages", place, "placeholder_in_answer")
            pages = opener.open(part.image_url.url, view, place, max_pages - len(opened))
            opened += [(page, place) for page in pages]
            text += PLACEHOLDER * len(pages)
        turns.append(Turn(role, text))
    chosen = replace(view, hd_num=request.hd_num, hd_num_among=None) if request.hd_num else view.of(len(opened))
    return turns, [one.laid_out(chosen, place) for one, place in opened]


def _settings(request: ChatRequest, room: int, prompt_tokens: int, max_context: int) -> Settings:
    longest = request.max_completion_tokens or request.max_tokens
    if room < (longest or 1):
        answer = f" and an answer of {longest:,}" if longest else ""
        raise _too_long(f"a prompt of {prompt_tokens:,} tokens{answer}", max_context)
    sampled = bool(request.temperature)
    try:
        return Settings(
            max_new_tokens=longest or min(room, DEFAULT_TOKENS),
            do_sample=sampled,
            temperature=request.temperature if request.temperature else 1.0,
            top_p=(request.top_p or 1.0) if sampled else 1.0,
            top_k=(request.top_k or 0) if sampled else 0,
            repetition_penalty=request.repetition_penalty or 1.0,
        )
    except UsageError as error:
        raise bad_request(str(error)) from error


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MAX_STOPS or any(not 1 <= len(one) <= _STOP_CHARACTERS for one in found):
        raise bad_request(
            f"stop: pass up to {MAX_STOPS} texts of 1 to {_STOP_CHARACTERS} characters", "stop", "invalid_value"
        )
    return found


def _too_long(found: str, max_context: int) -> ApiError:
    return bad_request(
        f"{found}, but this server accepts {max_context:,} tokens for prompt and answer; lower hd_num or max_tokens, "
        "or start it with a larger --max-context",
        "messages",
        "context_length_exceeded",
    )
