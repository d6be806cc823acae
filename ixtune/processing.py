"""The text side as transformers wants it: a tokenizer class over the checkpoint's sentencepiece model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

VOCABULARY_FILE = "tokenizer.model"


class IXC2Tokenizer(PreTrainedTokenizer):
    """transformers' view of the sentencepiece vocabulary, as its trainer and pipelines expect one.

    ixtune's own ids come from `ixtune.data.template`; this class encodes plain text to the same ids.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - transformers' own convention
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        kwargs = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **kwargs}
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self.pieces.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Piece -> id."""
        return {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.pieces.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Pieces -> text."""
        return str(self.pieces.decode(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy tokenizer.model to a folder."""
        target = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCABULARY_FILE)
        if target.resolve() != Path(self.vocab_file).resolve():
            target.write_bytes(Path(self.vocab_file).read_bytes())
        return (str(target),)
