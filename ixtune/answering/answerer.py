"""Generate answers in batches; the prefix of questions about the same images is computed once."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ixtune.answering.batches import Size, batches
from ixtune.answering.json_logits import JsonLogits
from ixtune.answering.json_schema import JsonGrammar
from ixtune.answering.prompt import Prompt
from ixtune.answering.settings import Settings
from ixtune.checkpoint.sizes import BATCH_PREFIX_BYTES, KEPT_PREFIX_BYTES
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.model import generation
from ixtune.model.prefix_cache import PrefixCache, is_stretched, prefix_length
from ixtune.model.shared_prefix import Prefix


class Images(Protocol):
    """Reads stored images for the model (`ixtune.training.batch.ImageSource`)."""

    def of(self, records: Sequence[dict[str, Any]], /) -> dict[str, Any]:
        """Return the images of records, in order, as the model's keyword arguments."""

    def key(self, stored: Mapping[str, Any], /) -> Hashable:
        """Return a key that identifies an image and its layout."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt ready for the model.

    Attributes:
        ids: Token ids, the image token's at image positions.
        images: Its images in order, as a prepared set stores them.
        max_new_tokens: Maximum length of the answer.
        grammar: Grammar of a JSON schema that the answer follows; None for a free answer.
    """

    ids: Sequence[int]
    images: Sequence[Mapping[str, Any]]
    max_new_tokens: int
    grammar: JsonGrammar | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the model.

    Attributes:
        text: The answer, without surrounding white space.
        tokens: Number of generated tokens, including the one that ended it.
        finish: `stop` if the model ended it, `length` if `max_new_tokens` did.
        added: The end of `text` that the model did not write: what completes JSON that was cut off.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]
    added: str = ""


class Answerer:
    """Answers prompts with one model, whose mode and autocast the caller controls.

    Attributes:
        stops: Token ids that end an answer.
        prefixes: Keys and values of prefixes that end with an image.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        images: Images,
        settings: Settings,
        prefixes: PrefixCache | None = None,
        variant: Hashable = None,
        leave: Callable[[], bool] | None = None,
    ) -> None:
        """Prepare to answer.

        Args:
            model: The network, bare or with an adapter.
            tokenizer: The base's.
            images: Source of the prompts' images.
            settings: Generation settings.
            prefixes: Cache to share with other answerers on the same base; None for a new one.
            variant: Key of the weights in use, such as the adapter's name, since several can share `prefixes`.
            leave: Called before each token; once it returns True, answers end there. None for never.
        """
        self.model, self.tokenizer, self.images, self.settings = model, tokenizer, images, settings
        self.prefixes = prefixes if prefixes is not None else PrefixCache(KEPT_PREFIX_BYTES)
        self.variant = variant
        self.stopping = {} if leave is None else {"stopping_criteria": StoppingCriteriaList([_Leave(leave)])}
        self.grammar = JsonGrammar(settings.json_schema, tokenizer) if settings.json_schema else None
        self.stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)

    def batches(self, prompts: Sequence[Prompt], max_rows: int) -> list[list[int]]:
        """Return indices of prompts batch by batch, within `max_rows` prompts and `BATCH_PREFIX_BYTES` of prefixes."""
        config = self.model.config
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads
        of_a_token = numbers * (config.hidden_size // config.num_attention_heads) * self.model.dtype.itemsize
        max_tokens = max(1, BATCH_PREFIX_BYTES // of_a_token)
        sizes = [prompt.size for prompt in prompts]
        if config.sizes.dynamic_above is not None:  # else the text need not be tokenized
            sizes = list(map(self._unshared_if_stretched, prompts, sizes))
        return batches(sizes, max_rows=max_rows, max_tokens=max_tokens)

    def _unshared_if_stretched(self, prompt: Prompt, size: Size) -> Size:
        """Return the size of a prompt; one that shares its prefix with no other gets a key of its own."""
        ids = prompt.ids(self.tokenizer, self.settings.template, self.model.config.member)
        return replace(size, prefix=object()) if is_stretched(self.model, len(ids)) else size

    def answer(self, prompts: Sequence[Prompt], streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer one batch of prompts; those about the same images should be neighbors.

        Args:
            prompts: What to answer.
            streamer: Receives the tokens as they are generated; for a single prompt.
        """
        longest, template = self.settings.max_new_tokens, self.settings.template
        member = self.model.config.member
        ids = [prompt.ids(self.tokenizer, template, member) for prompt in prompts]
        requests = [
            Request(of_one, prompt.images, longest, self.grammar) for of_one, prompt in zip(ids, prompts, strict=True)
        ]
        return self.answer_requests(requests, streamer)

    def answer_requests(self, requests: Sequence[Request], streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer one batch of tokenized prompts, each up to its own length; see `answer`."""
        prefixes = [self._prefix(request) for request in requests]
        self.prefixes.count_in_use(prefixes)
        if self.settings.do_sample:
            torch.manual_seed(self.settings.seed)
        made = generation.generate(
            self.model,
            [request.ids for request in requests],
            prefixes,
            stops=self.stops,
            pad_id=self.tokenizer.pad_id,
            streamer=streamer,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            **self.stopping,
            **_held([request.grammar for request in requests]),
            **self.settings.arguments(),
        )
        return [self._answer(ids, request) for ids, request in zip(made, requests, strict=True)]

    def _prefix(self, request: Request) -> Prefix | None:
        length = prefix_length(request.ids, self.model.config.image_token_id)
        if not length:
            return None

        def load(first: int) -> dict[str, Any]:
            return self.images.of([{"pictures": request.images[first:]}])

        shown = [self.images.key(stored) for stored in request.images]
        return self.prefixes.get(self.model, request.ids[:length], shown, load, self.variant, len(request.ids))

    def _answer(self, ids: Sequence[int], request: Request) -> Answer:
        said, ended = generation.until_stop(ids[: request.max_new_tokens], self.stops)
        text = self.tokenizer.decode(said).strip()
        if ended:
            return Answer(text, len(said) + 1, "stop")
        whole = text
        if request.grammar is not None and (closing := request.grammar.closing(said)):
            whole = self.tokenizer.decode([*said, *closing]).strip()
        added = whole[len(os.path.commonprefix((text, whole))) :]
        return Answer(whole, len(said), "length", added)


def _held(grammars: Sequence[JsonGrammar | None]) -> dict[str, Any]:
    """Return the argument of `generate` that constrains each row to its grammar; none if all are unconstrained."""
    return {"logits_processor": LogitsProcessorList([JsonLogits(grammars)])} if any(grammars) else {}


class _Leave(StoppingCriteria):
    """Cancel a generation whose result is no longer needed."""

    def __init__(self, leave: Callable[[], bool]) -> None:
        self.leave = leave

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        """Return for each sequence whether it ends here."""
        return torch.full((len(input_ids),), self.leave(), device=input_ids.device)
