"""Tokenize text with the sentencepiece vocabulary of a base and the two pieces of the chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from ixtune.errors import IxtuneError

END_OF_TURN = "[UNUSED_TOKEN_145]"
START_OF_TURN = "[UNUSED_TOKEN_146]"
FILE_NAME = "tokenizer.model"

# Control pieces: sentencepiece never finds them in text, the reference's tokenizer does.
_CONTROL = re.compile("(<unk>|<s>|</s>)")
_UNUSED = re.compile(r"\[UNUSED_TOKEN_\d+\]")
_CONTROL_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}


class Tokenizer:
    """Converts text to token ids and back, without adding BOS or anything else.

    Ids 0 (unknown, which stands for image positions), 1 (BOS) and 2 (EOS, also the padding) are those of the
    release (MODEL.md 3.1); the two turn pieces are looked up, because a small base numbers them otherwise.

    Args:
        path: A sentencepiece model file.

    Raises:
        IxtuneError: There is no such file, it is not a sentencepiece model, or its vocabulary does not fit the
            chat template: a turn piece is absent, the first three ids are others, or it adds or drops spaces.
    """

    unk_id = 0
    bos_id = 1
    eos_id = 2
    pad_id = 2

    def __init__(self, path: Path) -> None:
        import sentencepiece

        # The released vocabulary contains a null character; the library prints a warning to stderr at each load.
        sentencepiece.SetMinLogLevel(2)
        if not path.is_file():
            raise IxtuneError(
                "there is no tokenizer here",
                where=str(path),
                hint=f"pass the {FILE_NAME} of the base, a sentencepiece model file",
            )
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:  # RuntimeError: the C++ library cannot parse it
            raise IxtuneError(
                f"this is not a sentencepiece model (sentencepiece {sentencepiece.__version__}): {error}",
                where=str(path),
                hint="copy the tokenizer.model of the base again: it may be truncated, or a Git LFS pointer",
            ) from error
        self.path = path
        self.vocab_size: int = self._model.get_piece_size()
        self.end_of_turn_id = self._turn_piece_id(END_OF_TURN)
        self.start_of_turn_id = self._turn_piece_id(START_OF_TURN)
        self._require_template_fit()

    @classmethod
    def from_base(cls, folder: Path) -> Tokenizer:
        """Load the tokenizer of a base folder."""
        return cls(folder / FILE_NAME)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the model file: prepared sets are interchangeable only if it is equal."""
        from ixtune.files import sha256_file  # not needed to answer, see ixtune.exporting.standalone

        return sha256_file(self.path)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` without BOS; `<unk>`, `<s>` and `</s>` become 0, 1 and 2 as in the reference.

        Raises:
            UnicodeEncodeError: `text` holds half of a surrogate pair, which is not a character.
        """
        text.encode("utf-8")  # sentencepiece answers a lone surrogate with a RuntimeError about C++ types
        ids: list[int] = []
        for run in _CONTROL.split(text):
            if run in _CONTROL_IDS:
                ids.append(_CONTROL_IDS[run])
            elif run:
                ids.extend(self._model.encode(run))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; control pieces such as BOS vanish."""
        text: str = self._model.decode(list(ids))
        return text

    def piece(self, index: int) -> str:
        """Return the piece with this id, in sentencepiece's spelling (spaces as U+2581)."""
        piece: str = self._model.id_to_piece(index)
        return piece

    def piece_bytes(self, index: int) -> bytes | None:
        """Return the bytes that this id adds to a text; None for control, unused and template pieces."""
        model = self._model
        if model.is_control(index) or model.is_unknown(index) or model.is_unused(index):
            return None
        piece = self.piece(index)
        if model.is_byte(index):  # spelled <0xE2>
            return bytes([int(piece[3:5], 16)])
        return None if _UNUSED.fullmatch(piece) else piece.replace("▁", " ").encode()

    def piece_id(self, piece: str) -> int:
        """Return the id of a piece, or `unk_id` if it is not in the vocabulary."""
        index: int = self._model.piece_to_id(piece)
        return index

    def _turn_piece_id(self, piece: str) -> int:
        index = self.piece_id(piece)
        if index == self._model.unk_id():
            raise IxtuneError(
                f"this vocabulary lacks the piece {piece} of the chat template",
                where=str(self.path),
                hint="use the tokenizer.model of an InternLM-XComposer2 base, or of the base to be trained",
            )
        return index

    def _require_template_fit(self) -> None:
        first = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if first != (self.unk_id, self.bos_id, self.eos_id):
            raise IxtuneError(
                f"unknown, BOS and EOS have the ids {first[0]}, {first[1]}, {first[2]} here, not 0, 1, 2",
                where=str(self.path),
                hint="use a vocabulary trained with unk_id=0, bos_id=1, eos_id=2",
            )
        # The template is tokenized in runs between turn pieces, so every run must be independent.
        text = " a  b "
        kept = "".join(self._model.encode(text, out_type=str))
        if kept != text.replace(" ", "▁"):
            raise IxtuneError(
                f"this vocabulary changes spaces: {text!r} becomes {kept!r}",
                where=str(self.path),
                hint="use one trained with add_dummy_prefix=False and remove_extra_whitespaces=False",
            )
        marked = self._model.encode(f"a{START_OF_TURN}b{END_OF_TURN}")
        if self.start_of_turn_id not in marked or self.end_of_turn_id not in marked:
            raise IxtuneError(
                "the turn pieces are in this vocabulary but are not recognized in text",
                where=str(self.path),
                hint="use a vocabulary that has them among its user_defined_symbols",
            )
