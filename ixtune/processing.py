"""Tokenizer, image processor and processor for transformers' Auto classes.

Importing this module registers them; five lines of transformers then answer a question:

    import ixtune.processing
    from transformers import AutoModelForCausalLM, AutoProcessor

    processor = AutoProcessor.from_pretrained("merged")
    model = AutoModelForCausalLM.from_pretrained("merged")
    inputs = processor(images=["receipt.png"], text="What is the total?")
    print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64), inputs))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from ixtune.data.images.pixels import Corrections, converted, open_image, place_and_cut
from ixtune.data.record import Turn
from ixtune.data.text.template import PLACEHOLDER, encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.family import FOUR_KHD, Member, member_of
from ixtune.layout import PatchLayout, plan
from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM  # registers itself with AutoModelForCausalLM

__all__ = ["IXC2ForCausalLM", "IXC2ImageProcessor", "IXC2Processor", "IXC2Tokenizer"]

VOCABULARY_FILE = "tokenizer.model"
ImageRef = Image.Image | str | Path


class IXC2Tokenizer(PreTrainedTokenizer):
    """transformers tokenizer for the sentencepiece vocabulary.

    ixtune's own ids come from `ixtune.data.text.template`; this class encodes plain text to the same ids.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - transformers' own convention
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        kwargs = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **kwargs}
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Return the number of pieces."""
        return int(self.pieces.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Return the ids by piece."""
        return {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.pieces.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text."""
        return str(self.pieces.decode(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy tokenizer.model to a folder, and return its path."""
        target = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCABULARY_FILE)
        if target.resolve() != Path(self.vocab_file).resolve():
            target.write_bytes(Path(self.vocab_file).read_bytes())
        return (str(target),)


class IXC2ImageProcessor(BaseImageProcessor):
    """Turn images into the crops that the model takes, laid out as in training."""

    model_input_names = ["crops", "grids"]  # noqa: RUF012 - transformers' own convention

    def __init__(
        self,
        hd_num: int = FOUR_KHD.hd_num,
        upscale: bool = True,
        corrections: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Set the layout: see `ixtune.layout.plan`, `Corrections`, and `Member.record` for model and layout_rule."""
        super().__init__(**kwargs)
        self.hd_num, self.upscale, self.corrections = hd_num, upscale, list(corrections)

    @property
    def member(self) -> Member:
        """Return the model with its layout rule, from the attributes `model` and `layout_rule` if present."""
        return member_of(vars(self))

    def layouts(self, images: Sequence[ImageRef]) -> list[tuple[Image.Image, PatchLayout]]:
        """Return each image as RGB, with its layout.

        Raises:
            ImageError: a file is no image.
            LayoutError: an image is too thin for this hd_num.
        """
        corrections = Corrections.of(self.corrections)
        opened = [
            converted(image, corrections) if isinstance(image, Image.Image) else open_image(Path(image), corrections)
            for image in images
        ]
        return [
            (image, plan(image.width, image.height, self.hd_num, upscale=self.upscale, member=self.member))
            for image in opened
        ]

    def preprocess(self, images: ImageRef | Sequence[ImageRef], **kwargs: Any) -> BatchFeature:
        """Return `crops`, uint8 [N, 3, side, side] of all images together, and `grids`, (rows, cols) of each.

        Crops are uint8 and are normalized in the model. Other arguments are refused.
        """
        if unknown := [name for name in kwargs if name != "return_tensors"]:
            raise TypeError(f"unknown arguments: {', '.join(unknown)}")
        several = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        laid_out = self.layouts(several)
        return BatchFeature(_crops(laid_out))


class IXC2Processor(ProcessorMixin):
    """Encode questions and images for `generate` with the training template, and decode its ids to text."""

    def __init__(self, image_processor: IXC2ImageProcessor, tokenizer: IXC2Tokenizer, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)  # type: ignore[no-untyped-call]
        self._tokenizer = Tokenizer(Path(tokenizer.vocab_file))

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Encode one question, or a batch of them padded on the left.

        Args:
            images: Images or paths: a list for one question, a list of lists for several.
            text: The question or questions. <ImageHere> marks where an image stands; by default in front.
            kwargs: Only `return_tensors`, which may be "pt".

        Returns:
            input_ids and attention_mask [questions, length], and if there are images crops and grids.

        Raises:
            TemplateError: images and placeholders differ in number, or the text spells a piece of the template.
        """
        if unknown := [name for name in kwargs if name not in ("return_tensors", "padding")]:
            raise TypeError(f"unknown arguments: {', '.join(unknown)}")
        if text is None:
            raise TypeError("a question is needed: text=")
        texts = [text] if isinstance(text, str) else list(text)
        by_question = _by_question(images, len(texts), isinstance(text, str))
        laid_out = [self.image_processor.layouts(of_one) for of_one in by_question]
        rows = [
            self._ids(question, [layout.tokens for _, layout in of_one])
            for question, of_one in zip(texts, laid_out, strict=True)
        ]
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_id
        made: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        together = [one for of_one in laid_out for one in of_one]
        return BatchFeature({**made, **(_crops(together) if together else {})})

    def batch_decode(self, ids: Any, inputs: Any = None, **_: Any) -> list[str]:
        """Decode rows of ids up to the first one that ends a turn or the text.

        Args:
            ids: [questions, length], as returned by `generate`.
            inputs: The encoded questions, if `ids` begin with them.
        """
        start = inputs["input_ids"].shape[1] if inputs is not None else 0
        return [self.decode(row) for row in torch.as_tensor(ids)[:, start:]]

    def decode(self, ids: Any, **_: Any) -> str:
        """Decode one answer, see `batch_decode`."""
        row = torch.as_tensor(ids).tolist()
        stops = (self._tokenizer.eos_id, self._tokenizer.end_of_turn_id)
        end = next((at for at, token in enumerate(row) if token in stops), len(row))
        return self._tokenizer.decode(row[:end]).strip()

    def _ids(self, question: str, image_tokens: list[int]) -> list[int]:
        if PLACEHOLDER not in question:
            question = PLACEHOLDER * len(image_tokens) + question
        return expand(encode_prompt([Turn("user", question)], image_tokens, self._tokenizer))[0]


def _crops(laid_out: Sequence[tuple[Image.Image, PatchLayout]]) -> dict[str, Any]:
    crops = [torch.from_numpy(place_and_cut(image, layout)) for image, layout in laid_out]
    return {"crops": torch.cat(crops), "grids": [(layout.rows, layout.cols) for _, layout in laid_out]}


def _by_question(images: Any, questions: int, one: bool) -> list[list[ImageRef]]:
    """Return the images of each question as a list of lists."""
    if images is None:
        return [[] for _ in range(questions)]
    if isinstance(images, Image.Image | str | Path):
        images = [images]
    nested: list[Any] = [list(of_one) if isinstance(of_one, list | tuple) else of_one for of_one in images]
    if all(isinstance(of_one, list) for of_one in nested) and len(nested) == questions:
        return nested
    if one and not any(isinstance(of_one, list) for of_one in nested):
        return [nested]
    raise TypeError(f"{questions} questions: give images as a list of {questions} lists of images")


# The tokenizer classes that the original's tokenizer_config.json names. A merged model keeps that file, and for an
# unknown name transformers silently takes a class with other ids.
for _name in ("InternLMXComposer2Tokenizer", "InternLM2Tokenizer"):
    AutoTokenizer.register(IXC2Config, slow_tokenizer_class=type(_name, (IXC2Tokenizer,), {}), exist_ok=True)
AutoTokenizer.register(IXC2Config, slow_tokenizer_class=IXC2Tokenizer, exist_ok=True)
AutoImageProcessor.register(IXC2Config, slow_image_processor_class=IXC2ImageProcessor)
AutoProcessor.register(IXC2Config, IXC2Processor)
