"""Tokenizer, image processor and processor for transformers' Auto classes.

`import ixtune` registers them; transformers alone then answers a question:

    import ixtune
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained("merged")
    model = AutoModelForImageTextToText.from_pretrained("merged")
    inputs = processor(images="receipt.png", text="What is the total?", return_tensors="pt")
    print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64), inputs))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs, MultiModalData, ProcessorMixin

from ixtune.data.images.image_inputs import pil_image
from ixtune.data.images.pixels import Corrections, converted, place_and_cut
from ixtune.data.text.chat_template import CHAT_TEMPLATE
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.template import IMAGE_TOKEN_ID
from ixtune.data.text.tokenizer import END_OF_TURN, START_OF_TURN
from ixtune.family import FOUR_KHD, Member, member_of
from ixtune.layout import PatchLayout, plan
from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM  # registers itself with AutoModelForCausalLM
from ixtune.tokenization import IXC2Tokenizer

__all__ = ["IXC2ForCausalLM", "IXC2ImageProcessor", "IXC2Processor", "IXC2Tokenizer"]


class IXC2ImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of the image processor, see `IXC2ImageProcessor`; of transformers' own, `return_tensors` has effect."""

    hd_num: int
    upscale: bool
    corrections: list[str]


class IXC2ImageProcessor(BaseImageProcessor):
    """Turn images into the crops that the model takes, laid out as in training.

    Attributes:
        hd_num: Maximum number of crops per image.
        upscale: Whether small images are enlarged to fill `hd_num`.
        corrections: Deviations from how the reference opens images, see `Corrections`.
    """

    valid_kwargs = IXC2ImageProcessorKwargs
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

    def layout(self, width: int, height: int, hd_num: int | None = None, upscale: bool | None = None) -> PatchLayout:
        """Return the layout of an image of this size, by default with the settings of this processor.

        Raises:
            LayoutError: The image is too thin for this hd_num.
        """
        upscale = self.upscale if upscale is None else upscale
        return plan(width, height, hd_num or self.hd_num, upscale=upscale, member=self.member)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open images in any form that transformers accepts, keeping the nesting of lists.

        Args:
            image_url_or_urls: Paths, URLs (also `file:` and `data:`), base64, bytes, Pillow images and arrays.

        Raises:
            ImageError: A file is not an image.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(one) for one in image_url_or_urls]
        return pil_image(image_url_or_urls)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Return `crops`, uint8 [N, 3, side, side] of all images together, and `grids`, (rows, cols) of each.

        Crops are uint8 and are normalized in the model.

        Args:
            images: One image or several, nested or not, in any form of `fetch_images`.
            kwargs: `hd_num`, `upscale` and `corrections` instead of the processor's; `return_tensors`.

        Raises:
            TypeError: An argument has no effect on this model's images.
            ImageError: A file is not an image.
            LayoutError: An image is too thin for this hd_num.
        """
        return_tensors = kwargs.pop("return_tensors", None)
        hd_num, upscale = kwargs.pop("hd_num", None), kwargs.pop("upscale", None)
        corrections = Corrections.of(kwargs.pop("corrections", None) or self.corrections)
        if unknown := [name for name, value in kwargs.items() if value is not None]:
            raise TypeError(f"unknown arguments: {', '.join(unknown)}; use hd_num, upscale, corrections")
        fetched = self.fetch_images(images if isinstance(images, list | tuple) else [images])
        opened = [converted(image, corrections) for image in _flat(fetched)]
        layouts = [self.layout(image.width, image.height, hd_num, upscale) for image in opened]
        crops = [torch.from_numpy(place_and_cut(one, layout)) for one, layout in zip(opened, layouts, strict=True)]
        made = {"crops": torch.cat(crops), "grids": [(layout.rows, layout.cols) for layout in layouts]}
        return BatchFeature(made, tensor_type=return_tensors)


class IXC2Processor(ProcessorMixin):
    """Encode conversations, prompts and questions with their images for the model, and decode its ids to text.

    Attributes:
        image_token: Placeholder of an image in texts.
        image_token_id: Id of image positions.
    """

    def __init__(
        self, image_processor: IXC2ImageProcessor, tokenizer: IXC2Tokenizer, chat_template: str | None = None
    ) -> None:
        self.image_token = PLACEHOLDER
        self.image_token_id = IMAGE_TOKEN_ID
        template = chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=template)  # type: ignore[no-untyped-call]

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Encode one text or a batch of them, with the images they show.

        A text with turn marks, as `apply_chat_template` renders it, is taken as it is. Any other text is a question: it
        becomes the user's turn of a prompt, with its images in front unless it contains <ImageHere>.
        `add_special_tokens=False` takes every text as it is.

        Args:
            images: One image, a list of images, or a list of them for each text; see `fetch_images`.
            text: A text or a list of texts, with <ImageHere> at the position of each image.
            kwargs: Arguments of transformers' processors, of the tokenizer (`padding`, `padding_side`, `truncation`,
                `max_length`, `return_tensors`, ...) and of the image processor (`hd_num`, ...).

        Returns:
            input_ids and attention_mask [texts, length]; if there are images, crops and grids of all of them.

        Raises:
            ValueError: Images and placeholders differ in number.
            jinja2.TemplateError: A question contains a piece of the chat template.
        """
        if text is None:
            raise TypeError("a text is needed: text=")
        made: BatchFeature = super().__call__(images=_none_if_empty(images), text=text, **kwargs)
        return made

    def apply_chat_template(
        self, conversation: Any, *args: Any, return_assistant_tokens_mask: bool = False, **kwargs: Any
    ) -> Any:
        """Render conversations, and with `tokenize=True` encode them with their images, see transformers.

        Args:
            conversation: Messages of role and content, or a list of conversations.
            args: Arguments of transformers' method.
            return_assistant_tokens_mask: Return `assistant_masks` too: 1 at the tokens that training supervises.
            kwargs: Arguments of transformers' method.

        Raises:
            jinja2.TemplateError: The chat template does not accept a conversation.
        """
        made = super().apply_chat_template(conversation, *args, **kwargs)
        if return_assistant_tokens_mask and isinstance(made, BatchFeature):
            ids = made["input_ids"]
            masks = [self._answers_in(row) for row in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
            made["assistant_masks"] = torch.tensor(masks) if isinstance(ids, torch.Tensor) else masks
        return made

    def _answers_in(self, ids: Sequence[int]) -> list[int]:
        """Return 1 at the positions of answers, to their end of turn, and of what ends the text after the last one.

        By ids, because a sentencepiece tokenizer does not know the characters behind a token.
        """
        start, end, eos = self.tokenizer.convert_tokens_to_ids([START_OF_TURN, END_OF_TURN, self.tokenizer.eos_token])
        header = [start, *self.tokenizer("assistant\n")["input_ids"]]
        mask = [0] * len(ids)
        inside = False
        for at, token in enumerate(ids):
            inside = inside or list(ids[max(0, at - len(header)) : at]) == header
            mask[at] = int(inside)
            inside = inside and token != end
        text_end = [end, *self.tokenizer("\n")["input_ids"], eos]
        for at in range(len(ids) - len(text_end) + 1):
            if mask[at] and list(ids[at : at + len(text_end)]) == text_end:
                mask[at : at + len(text_end)] = [1] * len(text_end)
        return mask

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Open the images, and put questions into the chat template, see `__call__`."""
        images, text, videos, audio = super().prepare_inputs_layout(images, text, videos, audio, **kwargs)
        as_it_is = kwargs.get("add_special_tokens", (kwargs.get("text_kwargs") or {}).get("add_special_tokens", True))
        if text is None or as_it_is is False or not all(isinstance(one, str) for one in text):
            return images, text, videos, audio
        unplaced = [START_OF_TURN not in one and PLACEHOLDER not in one for one in text]
        placed = sum(one.count(PLACEHOLDER) for one in text)
        shown = _shown(images, len(text), placed) if any(unplaced) else []
        for at, one in enumerate(text):
            if START_OF_TURN not in one:
                question = PLACEHOLDER * shown[at] + one if unplaced[at] else one
                turn = {"role": "user", "content": question}
                text[at] = self.apply_chat_template([turn], add_generation_prompt=True)
        return images, text, videos, audio

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Return the placeholder once for each position of an image."""
        rows, cols = (int(side) for side in image_inputs["grids"][image_idx])
        tokens: int = self.image_processor.member.tokens(rows, cols)
        return PLACEHOLDER * tokens

    def batch_decode(self, ids: Any, inputs: Any = None, **kwargs: Any) -> list[str]:
        """Decode rows of ids as the tokenizer does; with `inputs`, decode the answers alone.

        Args:
            ids: [texts, length], as returned by `generate`.
            inputs: The encoded texts, if `ids` begin with them; each text is the end of the beginning.
            kwargs: Arguments of the tokenizer's `batch_decode`.
        """
        if inputs is None:
            decoded: list[str] = self.tokenizer.batch_decode(ids, **kwargs)
            return decoded
        start = torch.as_tensor(inputs["input_ids"]).shape[1]
        stops = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(END_OF_TURN)}
        answers = []
        for row in torch.as_tensor(ids)[:, start:].tolist():
            end = next((at for at, token in enumerate(row) if token in stops), len(row))
            answers.append(self.tokenizer.decode(row[:end], skip_special_tokens=True, **kwargs).strip())
        return answers

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Return the tokens and crops of images of these sizes, (height, width) each, for servers that ask."""
        if image_sizes is None:
            return MultiModalData()
        settings = {name: kwargs.get(name) for name in ("hd_num", "upscale")}
        layouts = [self.image_processor.layout(width, height, **settings) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[layout.tokens for layout in layouts], num_image_patches=[one.crops for one in layouts]
        )


def _flat(images: Any) -> list[Any]:
    """Return nested lists of images as one list."""
    return [one for part in images for one in (_flat(part) if isinstance(part, list | tuple) else [part])]


def _none_if_empty(images: Any) -> Any:
    return None if isinstance(images, list | tuple) and not _flat(images) else images


def _shown(images: Any, texts: int, placed: int) -> list[int]:
    """Return the number of images of each text, of those without placeholders where `placed` images have some.

    Raises:
        ValueError: It is not clear which text shows which image.
    """
    of_texts = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    nested = [isinstance(one, list | tuple) for one in of_texts]
    if all(nested) and len(of_texts) == texts:
        return [len(one) for one in of_texts]
    if len(_flat(of_texts)) == placed:
        return [0] * texts
    if texts == 1 and not any(nested):
        return [len(of_texts)]
    if len(of_texts) == texts and not any(nested):
        return [1] * texts
    raise ValueError(f"{texts} texts: pass images as a list of {texts} lists of images, or place them by {PLACEHOLDER}")


# The tokenizer classes that the original's tokenizer_config.json names. A merged model keeps that file, and for an
# unknown name transformers silently takes a class with other ids.
for _name in ("InternLMXComposer2Tokenizer", "InternLM2Tokenizer"):
    AutoTokenizer.register(IXC2Config, slow_tokenizer_class=type(_name, (IXC2Tokenizer,), {}), exist_ok=True)
AutoTokenizer.register(IXC2Config, slow_tokenizer_class=IXC2Tokenizer, exist_ok=True)
AutoImageProcessor.register(IXC2Config, slow_image_processor_class=IXC2ImageProcessor)
AutoProcessor.register(IXC2Config, IXC2Processor)
