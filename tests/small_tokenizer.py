"""Train a small sentencepiece vocabulary with the tokens of the chat template, in a tenth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece

SENTENCES = [
    "What is the total on this receipt? The total is 42.50 euros.",
    "Which bar is the highest in the chart? The third bar is.",
    "user and assistant say what they see in the image, line by line",
    "1 2 3 4 5 6 7 8 9 0 . , : ; ! ? ( ) [ ] < > / - _",
]


def train(folder: Path, **changes: Any) -> Path:
    """Write `folder/tokenizer.model`; `changes` are settings of sentencepiece's trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["\n", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
    }
    prefix = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(prefix), **(settings | changes)
    )
    prefix.with_suffix(".vocab").unlink()
    return prefix.with_suffix(".model")
