"""transformers tokenizer of the model family; `ixtune.processing` registers it."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.template import IMAGE_TOKEN_ID
from ixtune.data.text.tokenizer import END_OF_TURN, START_OF_TURN

VOCABULARY_FILE = "tokenizer.model"

_PLACEHOLDERS = re.compile(f"((?:{re.escape(PLACEHOLDER)})+)")


class IXC2Tokenizer(PreTrainedTokenizer):
    """transformers tokenizer for the sentencepiece vocabulary.

    It adds neither BOS nor EOS: the chat template writes them. `<ImageHere>` becomes the id of image positions, and
    separates the texts around it as in training.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - transformers' own convention
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"  # for generation

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        sentencepiece.SetMinLogLevel(2)  # the released vocabulary holds a null character, which it reports at each load
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        kwargs = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **kwargs}
        kwargs.setdefault("extra_special_tokens", [START_OF_TURN, END_OF_TURN])
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Return the number of pieces."""
        return int(self.pieces.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Return the ids by piece."""
        return {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Convert a text to pieces; image positions are split off first, since transformers looks at each character."""
        pieces: list[str] = []
        for run in _PLACEHOLDERS.split(text):
            if run.startswith(PLACEHOLDER):
                pieces += [PLACEHOLDER] * (len(run) // len(PLACEHOLDER))
            elif run:
                pieces += super().tokenize(run, **kwargs)
        return pieces

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.pieces.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return IMAGE_TOKEN_ID if token == PLACEHOLDER else self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text; special tokens are kept, and image positions become <ImageHere>."""
        special = {*self.all_special_tokens, PLACEHOLDER}
        texts: list[str] = []
        for is_special, group in groupby(tokens, special.__contains__):
            run = list(group)
            texts.append("".join(run).replace("<unk>", PLACEHOLDER) if is_special else self.pieces.decode(run))
        return "".join(texts)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy tokenizer.model to a folder, and return its path."""
        target = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCABULARY_FILE)
        if target.resolve() != Path(self.vocab_file).resolve():
            target.write_bytes(Path(self.vocab_file).read_bytes())
        return (str(target),)
