"""Write the small files that let transformers find our processor, without importing transformers."""

from __future__ import annotations

from pathlib import Path

from ixtune.data.text.chat_template import CHAT_TEMPLATE, CHAT_TEMPLATE_FILE
from ixtune.family import FOUR_KHD, Member
from ixtune.files import atomic_write_json, atomic_write_text

PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer_config.json"


def write_processor_files(
    folder: Path,
    hd_num: int,
    *,
    upscale: bool = True,
    corrections: tuple[str, ...] = (),
    member: Member = FOUR_KHD,
    replace_tokenizer_config: bool = True,
) -> None:
    """Write the files that `AutoProcessor` and `AutoTokenizer` read after `import ixtune`.

    Args:
        folder: Folder of the model.
        hd_num: Maximum number of crops per image, as in training.
        upscale: Whether small images are enlarged, as in training.
        corrections: Names of deviations from how the reference opens images, as in training.
        member: The model, with the layout rule of training.
        replace_tokenizer_config: False keeps an existing file, which the original's own code needs.
    """
    described = {"image_processor_type": "IXC2ImageProcessor", "processor_class": "IXC2Processor", "hd_num": hd_num}
    laid_out = {"upscale": upscale, "corrections": list(corrections), **member.record()}
    atomic_write_json(folder / PREPROCESSOR_FILE, {**described, **laid_out})
    atomic_write_text(folder / CHAT_TEMPLATE_FILE, CHAT_TEMPLATE)
    if replace_tokenizer_config or not (folder / TOKENIZER_FILE).is_file():
        atomic_write_json(
            folder / TOKENIZER_FILE, {"tokenizer_class": "IXC2Tokenizer", "processor_class": "IXC2Processor"}
        )
