"""Generation settings, checked before a model is loaded and without a tensor library."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from ixtune.answering.prompt import Template
from ixtune.errors import UsageError, option_of, require_at_least, require_one_of


@dataclass(frozen=True, slots=True)
class Settings:
    """Generation settings, with the names and meanings of transformers' GenerationConfig.

    Attributes:
        max_new_tokens: Maximum new tokens per answer.
        do_sample: Sample tokens instead of taking the most likely one.
        temperature: Divisor of the logits when sampling.
        top_p: Sample from the smallest set of tokens with this total probability.
        top_k: Sample from this many most likely tokens; 0 for all.
        repetition_penalty: Divisor of the logits of tokens that occurred before, in the prompt or in the answer; 1 for
            none.
        seed: Random seed of each batch when sampling.
        template: Chat template of the prompts.
        json_schema: JSON schema that answers follow, from `json_schema.read_schema`; None for free answers.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    template: Template = "training"
    json_schema: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that transformers would misread.

        Raises:
            UsageError: An option is out of its range, or a sampling option is given without sampling.
        """
        require_at_least("max_new_tokens", self.max_new_tokens, 1)
        require_at_least("top_k", self.top_k, 0)
        require_one_of("template", self.template, get_args(Template))
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, float("inf")),
            ("top_p", self.top_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.0, float("inf")),
        ):
            if not low < value <= high:
                raise UsageError(
                    f"{name} is {value}", where=option_of(name), hint=f"pass more than {low:g}, at most {high:g}"
                )
        given = {"temperature": self.temperature != 1.0, "top_p": self.top_p != 1.0, "top_k": self.top_k != 0}
        changed = [name for name, value in given.items() if value]
        if changed and not self.do_sample:
            raise UsageError(
                f"{option_of(changed[0])} has no effect on greedy answers",
                hint="add --do-sample to draw answers, or leave it out",
            )

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of `generate`, without `max_new_tokens`, which each request has."""
        values = asdict(self)
        for name in ("seed", "template", "max_new_tokens", "json_schema"):
            del values[name]
        if not self.do_sample:
            for name in ("temperature", "top_p", "top_k"):  # transformers warns about them
                del values[name]
        if self.repetition_penalty == 1.0:
            del values["repetition_penalty"]
        return values
