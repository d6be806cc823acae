"""Pre-train the nano base to read print: `python examples/nano-base/train.py all --out DIR`.

Stages, in order. Each can be run alone, and resumes from its checkpoint in DIR when the same command is rerun:
    see     the vision tower alone reads rows of print (CTC); its head is thrown away after `read`
    copy    the decoder alone learns to find and copy text, from ideal cells and without images
    cells   the tower and the projector learn to give those cells
    read    the whole network answers questions about drawn pages
    export  write the checkpoint in the original form
    recover (not part of `all`) take a written base, so that `cells` and `read` can train it further

The vocabulary is that of the shipped base (`base/tokenizer.model`): a sentencepiece model with one piece a character.
Needs the Debian packages named in fonts.py. To shorten a stage, rerun it with fewer steps: the learning rate falls
over the last `--decay` steps before the number given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from cells import cells
from network import IXC2ForCausalLM, configuration
from reader import SPREAD
from recover import recover
from stages import copy, read
from state import Machine
from tower import see

VOCABULARY = Path(__file__).resolve().parent / "base" / "tokenizer.model"
STEPS = {
    "see": (1700, 400),
    "copy": (3000, 600),
    "cells": (4000, 1500),
    "read": (1500, 400),
    "recover": (250, 150),
}  # and over how many the rate falls
STAGES = ["see", "copy", "cells", "read"]


def export(out: Path, base: Path, vocabulary: Path = VOCABULARY) -> None:
    """Write OUT/read.pt to BASE in the original form, in bfloat16 as the released checkpoint."""
    model = IXC2ForCausalLM(configuration(SPREAD))
    weights = torch.load(out / "read.pt", weights_only=True, map_location="cpu")["weights"]
    model.load_state_dict({k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")})
    model.to(torch.bfloat16).save_pretrained(base, max_shard_size="4MB")
    (base / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    config = model.config
    vision = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim")
    original = {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_length": 16384,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "internlmxcomposer2",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": 2,
        "plora": config.plora,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": config.rope_parameters["rope_theta"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vision_config": {key: getattr(config.vision_config, key) for key in vision},
        "vocab_size": config.vocab_size,
    }
    (base / "config.json").write_text(json.dumps(original, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", *STAGES, "export", "recover"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' checkpoints")
    parser.add_argument("--base", type=Path, help="base that `export` writes and `recover` reads (default: OUT/base)")
    parser.add_argument("--steps", type=int, help="steps of the one stage given (default: see STEPS in train.py)")
    parser.add_argument("--decay", type=int, help="last steps of the stage, over which the learning rate falls")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--device", default="cpu", help="device of the network, such as cuda (default: cpu)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pages (default: 1)")
    parser.add_argument("--times", type=int, default=1, help="factor on the pages of a step (default: 1)")
    chosen = parser.parse_args()
    if chosen.stage == "all" and (chosen.steps or chosen.decay):
        parser.error("--steps and --decay need one stage, not `all`")
    torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    base = chosen.base or chosen.out / "base"
    machine = Machine(chosen.device, chosen.workers, chosen.times)
    for stage in STAGES if chosen.stage == "all" else [chosen.stage]:
        if stage == "export":
            break
        steps, decay = (given or usual for given, usual in zip((chosen.steps, chosen.decay), STEPS[stage], strict=True))
        if stage == "see":
            see(chosen.out, steps, decay, machine)
        elif stage == "recover":
            recover(chosen.out, VOCABULARY, steps, decay, machine, base)
        else:
            {"copy": copy, "cells": cells, "read": read}[stage](chosen.out, VOCABULARY, steps, decay, machine)
    if chosen.stage in ("all", "export"):
        export(chosen.out, base)


if __name__ == "__main__":
    main()
