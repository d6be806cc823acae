"""How answers are made: settings that are checked before anything is loaded, without any tensor library."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ixtune.errors import UsageError
from ixtune.evaluation.prompt import Template


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made; names and meanings are those of transformers' GenerationConfig.

    Attributes:
        max_new_tokens: Longest answer.
        do_sample: Draw tokens; otherwise the likeliest is taken.
        temperature: Divides the logits. Of sampling.
        top_p: Smallest set of tokens with this probability. Of sampling.
        top_k: So many likeliest tokens; 0 for all. Of sampling.
        repetition_penalty: Divides the logits of tokens that were there, the prompt's included; 1 for none.
        seed: Of sampling; the same batch is answered the same way again.
        template: Which ids the question becomes.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    template: Template = "training"

    def __post_init__(self) -> None:
        """Refuse what transformers would take for something else.

        Raises:
            UsageError: an option is out of its range, or one of sampling is given without sampling.
        """
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, float("inf")),
            ("top_p", self.top_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.0, float("inf")),
        ):
            if not low < value <= high:
                raise UsageError(
                    f"{name} is {value}", where=_option(name), hint=f"give more than {low:g}, at most {high:g}"
                )
        given = {"temperature": self.temperature != 1.0, "top_p": self.top_p != 1.0, "top_k": self.top_k != 0}
        changed = [name for name, value in given.items() if value]
        if changed and not self.do_sample:
            raise UsageError(
                f"{_option(changed[0])} has no effect on greedy answers",
                hint="add --do-sample to draw answers, or leave it out",
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        values = asdict(self)
        del values["seed"], values["template"]
        if not self.do_sample:
            for name in ("temperature", "top_p", "top_k"):  # transformers warns of them
                del values[name]
        if self.repetition_penalty == 1.0:
            del values["repetition_penalty"]
        return values


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
