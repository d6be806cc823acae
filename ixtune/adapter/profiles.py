"""Export profiles, each named after its consumer, and the formats that are refused."""

from __future__ import annotations

from dataclasses import dataclass

from ixtune.errors import UsageError, choice


@dataclass(frozen=True, slots=True)
class Profile:
    """An export profile.

    Attributes:
        name: Value of `--profile`.
        makes: Content of the folder.
        consumer: Software and version that loads it.
        run_here: Whether ixtune's checks run the consumer; otherwise they check keys, shapes and config.
        code_runs: Whether the consumer runs Python files that came with the base.
        command: Command or code that loads it; DIR stands for the folder.
        limits: What is known not to work, a sentence each.
    """

    name: str
    makes: str
    consumer: str
    run_here: bool
    code_runs: bool
    command: str
    limits: tuple[str, ...]


_LINES = """\
import ixtune  # where it is not installed, pass trust_remote_code=True to from_pretrained instead
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("DIR", dtype="auto")
processor = AutoProcessor.from_pretrained("DIR")
inputs = processor(images=["receipt.png"], text="What is the total?", return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64), inputs)[0])"""

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="peft-original",
            makes="the adapter alone, keys as the original remote-code model names them",
            consumer="peft 0.10 on the original code, transformers 4.33 to 4.40",
            run_here=False,
            code_runs=True,
            command='model = peft.PeftModel.from_pretrained(original_model, "DIR")',
            limits=(
                "transformers after about 4.40 does not run the original code",
                "peft before 0.10 does not know DoRA's settings",
                "an adapter of the projector alone",
                "trained separators: they are bare parameters there, which peft does not load; use original",
                "further training: peft 0.10 takes the base's own Plora_* for LoRA and trains them along",
                "a 4-bit base: bitsandbytes replaces the original's linears, whose image mask is then lost",
            ),
        ),
        Profile(
            name="transformers",
            makes="the merged model with its processor, and the code that loads it without ixtune",
            consumer="transformers 5.23 or 5.24 with trust_remote_code=True, or after `import ixtune`",
            run_here=True,
            code_runs=False,
            command=_LINES,
            limits=(
                "without ixtune and without trust_remote_code=True: transformers does not know the architecture",
                "programs with their own code for each architecture, such as vLLM and llama.cpp",
            ),
        ),
        Profile(
            name="original",
            makes="the merged model with the base's original names, config.json and files; its code is copied as bytes",
            consumer="the original code, transformers 4.33 to 4.40, trust_remote_code=True",
            run_here=False,
            code_runs=True,
            command='AutoModelForCausalLM.from_pretrained("DIR", torch_dtype=torch.bfloat16, trust_remote_code=True)',
            limits=(
                "transformers after about 4.40 does not run the original code",
                "the original code fetches openai/clip-vit-large-patch14-336 when it starts, offline too",
                "several images in one prompt fail in the original code of 4KHD; that of 2.5 accepts them",
                "hd_num is an argument of its chat(), 25 by default (24 for 2.5): pass the one used in training",
            ),
        ),
        Profile(
            name="lmdeploy-0.13",
            makes="like original, checked for what lmdeploy requires",
            consumer="lmdeploy 0.13.0, the last version that serves the model; it needs the package decord",
            run_here=False,
            code_runs=True,
            command="lmdeploy serve api_server DIR",
            limits=(
                "hd_num is fixed at 25 in its code (for 2.5 it is 24 unless a request gives another): an adapter "
                "trained at another one sees other images there",
                "images are put in front of the text, regardless of their position in training",
                "the vision tower runs in float16",
                "later versions have dropped the model",
            ),
        ),
        Profile(
            name="nf4",
            makes="the merged model with its decoder linears in 4 bits, about 6 GB for the 7B, and its processor",
            consumer="as transformers, with bitsandbytes 0.50; ixtune with --base DIR",
            run_here=True,
            code_runs=False,
            command=_LINES,
            limits=(
                "quantizing the merged weights rounds once more than training did (1 to 2 % of a weight's size): where "
                "every answer counts, use the adapter with its base, or the profile transformers",
                "merging another adapter into it",
                "CPUs with AVX512-BF16 under plain transformers: bitsandbytes repacks a weight at its first use; "
                "ixtune's own commands prevent it",
            ),
        ),
    )
}

REFUSED = {
    "gguf": "we know of no code in llama.cpp for PLoRA, which acts on image positions only, or for this vision layout; "
    "with a wrong one a model reads images wrongly without an error",
    "vllm": "we know of no release of vLLM with code for the model (asked for in vllm#3101); merged weights alone do "
    "not help, PLoRA needs the image positions in every layer",
}


def profile_named(name: str) -> Profile:
    """Return the profile with this name.

    Raises:
        UsageError: There is none; the message gives the reason if it is known.
    """
    if name in PROFILES:
        return PROFILES[name]
    if reason := REFUSED.get(name.lower()):
        raise UsageError(
            f"there is no export to {name}: {reason}",
            where="--profile",
            hint=f"choose one of {', '.join(PROFILES)}; `ixtune export --list` describes them",
        )
    raise UsageError(
        f"there is no profile {name!r}",
        where="--profile",
        hint=f"{choice(name, PROFILES)} (`ixtune export --list` describes them)",
    )
