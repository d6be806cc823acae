"""Pre-trains the nano base to read printed text: `python examples/nano-base/train.py all --out DIR`.

Stages, in order (each can be run alone and continues where it was stopped):
    vocab   a character-level sentencepiece vocabulary with the special pieces of the released one
    see     the vision tower alone names the characters under its patches
    read    the whole network answers questions about generated pages
    export  the checkpoint in the original form
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fonts
import numpy as np
import pages
import sentencepiece
import torch
from torch import nn

from ixtune.data.images.pixels import crops as cut
from ixtune.data.images.pixels import place
from ixtune.layout import PatchLayout, plan
from ixtune.model.configuration import IXC2Config
from ixtune.model.loss import supervised_rows
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.vision import lay_out, merge_2x2, normalise

END, START = "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"
GRIDS = {(1, 1): 30, (1, 2): 14, (2, 1): 14, (2, 2): 20, (1, 3): 6, (3, 1): 6, (2, 3): 3, (3, 2): 3, (1, 4): 4}
PACK_TOKENS = 3000
QUESTIONS = 10
# For so many steps of `read` the decoder is given only the image rows with print on them, at their true positions.
# Among 313 and more rows a hundred are printed; attention that starts out even could not find them in 800 steps.
SPARSE_STEPS = 1000
# And for so many every character stands in a cell of its own.
ALIGNED_STEPS = 650
# The 7B's own for the tower; about 1 / sqrt(192) for the decoder: from 0.02 a network this narrow starts with
# attention that is all but even.
SEE_INITIALIZER_RANGE, READ_INITIALIZER_RANGE = 0.02, 0.06


def make_vocabulary(out: Path) -> Path:
    """Train tokenizer.model: one piece a character, bytes for the rest, and the pieces the chat template needs."""
    rng = random.Random(0)
    corpus = [" ".join([pages.word(rng), pages.value(rng), pages.PRINTABLE]) for _ in range(400)]
    out.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(out / "tokenizer"),
        model_type="bpe",
        vocab_size=3 + 5 + 256 + len(set("".join(corpus)) - {" "}) + 1,
        character_coverage=1.0,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n", "user", "assistant", END, START],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink(missing_ok=True)
    return out / "tokenizer.model"


def configuration(vocab_size: int, initializer_range: float) -> IXC2Config:
    """The 7B's proportions at three million parameters."""
    return IXC2Config(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        initializer_range=initializer_range,
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "projection_dim": 128,
        },
        plora={"wqkv": {"rank": 8, "alpha": 16}, "others": {"rank": 16, "alpha": 16}},
        dtype="float32",
    )


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices (it halved the loss in trials), AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        hidden = parameter.ndim == 2 and not any(k in name for k in ("embedding", "output.", "head.", "plora"))
        (matrices if hidden else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def schedule(step: int, steps: int, warm: int, decay: int) -> float:
    """Warm up, stay, then fall linearly to zero over the last `decay` steps."""
    return min(1.0, (step + 1) / warm, max(0.0, (steps - step) / max(1, decay)))


class Run:
    """A stage's state on disk: weights, optimizers and the step reached."""

    def __init__(self, path: Path, module: nn.Module, lr: float) -> None:
        self.path, self.module, self.lr = path, module, lr
        self.optimizers = optimizers(module, lr)
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            module.load_state_dict(state["weights"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def save(self) -> None:
        """Write the state, whole or not at all."""
        temporary = self.path.with_suffix(".part")
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"weights": self.module.state_dict(), "optimizers": states, "step": self.step}, temporary)
        temporary.replace(self.path)

    def update(self, factor: float) -> float:
        """One optimizer step at lr * factor; returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(norm)


def character_labels(page: pages.Page, side: int) -> np.ndarray:
    """For each 14-pixel patch the characters under its left and right half: int64 [576, 2], 0 where there is none."""
    patches = side // 14
    grid = np.zeros((patches, patches * 2), dtype=np.int64)
    for character, x0, y0, x1, y1 in page.boxes:
        left, right = math.ceil((x0 - 3.5) / 7), math.floor((x1 - 3.5) / 7)
        top, bottom = math.ceil((y0 - 7) / 14), math.floor((y1 - 7) / 14)
        if right >= left and bottom >= top and right >= 0 and bottom >= 0:
            grid[max(0, top) : bottom + 1, max(0, left) : right + 1] = pages.PRINTABLE.index(character) + 1
    return grid.reshape(-1, 2)


def see(out: Path, steps: int, decay: int, batch: int = 12) -> None:
    """Stage `see`."""
    torch.manual_seed(1)
    model = IXC2ForCausalLM(configuration(512, SEE_INITIALIZER_RANGE))
    classes = len(pages.PRINTABLE) + 1
    module = nn.ModuleDict({"vit": model.vit, "head": nn.Linear(128, 2 * classes)})
    run = Run(out / "see.pt", module, lr=2e-3)
    files, began = fonts.find(), time.time()
    while run.step < steps:
        rng = random.Random(f"see {run.step}")
        drawn = [pages.characters_page(rng, 336, files) for _ in range(batch)]
        crops = torch.from_numpy(np.stack([np.asarray(p.image) for p in drawn])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.stack([character_labels(p, 336) for p in drawn])).reshape(-1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = module["vit"](normalise(crops))[:, 1:]
            logits = module["head"](hidden).float().reshape(-1, classes)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        run.update(schedule(run.step, steps, 50, decay))
        if run.step % 25 == 0 or run.step == steps:
            printed = labels > 0
            share = (logits.argmax(-1) == labels)[printed].float().mean().item()
            print(
                f"see {run.step}/{steps} loss {loss.item():.3f} read {share:.3f} {time.time() - began:.0f}s", flush=True
            )
            run.save()
    run.save()


def cell_labels(page: pages.Page, layout: PatchLayout, tokenizer: Any) -> dict[int, int]:
    """The first character in each 28-pixel cell: position within the image span -> token id.

    Asked of the decoder at the image rows themselves, beside the answers. It puts the characters that the tower sees
    into the decoder's terms; with answers alone, 400 steps taught it nothing but the letters' frequencies.
    """
    scale_x, scale_y = layout.resized_width / layout.width, layout.resized_height / layout.height
    across = 12 * layout.cols
    labels: dict[int, int] = {}
    for character, x0, y0, x1, y1 in sorted(page.boxes, key=lambda box: box[1]):
        column = int(((x0 + x1) / 2 * scale_x + layout.pad_left) // 28)
        row = int(((y0 + y1) / 2 * scale_y + layout.pad_top) // 28)
        if 0 <= column < across and 0 <= row < 12 * layout.rows:
            labels.setdefault(157 + row * (across + 1) + column, tokenizer.piece_to_id(character))
    return labels


@dataclass
class Reading:
    """One page and its questions as one conversation."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    crops: np.ndarray
    grid: tuple[int, int]
    rows: list[int] | None  # which rows of the image span there are; None for all
    cells: list[tuple[int, int]]  # (position in ids, character asked for there)


def reading(
    rng: random.Random,
    files: list[Path],
    tokenizer: Any,
    easy: float,
    pitch: float | None,
    cells: int,
    blank: float | None,
) -> Reading:
    """Draw a page and ask about it.

    Args:
        rng: of everything drawn.
        files: fonts.
        tokenizer: of the base.
        easy: share of easy pages.
        pitch: of the characters.
        cells: so many image rows are asked for their character.
        blank: share of the unprinted image rows that are kept; None keeps all, the global view too.
    """
    page = pages.Page(pages.Image.new("RGB", (1, 1)))
    while not page.questions:
        wanted = rng.choices(list(GRIDS), weights=list(GRIDS.values()))[0]
        if rng.random() < easy:
            wanted, page = (1, 1), pages.easy_page(rng, files, pitch)
        else:
            page = pages.question_page(rng, wanted, files, pitch)
    layout = plan(page.image.width, page.image.height, wanted[0] * wanted[1])
    seen = cell_labels(page, layout, tokenizer)
    rows = list(range(layout.tokens))
    if blank is not None:
        across = 12 * layout.cols + 1
        lines: dict[int, list[int]] = {}
        for at in seen:
            lines.setdefault((at - 157) // across, []).append(at)
        printed = {at for line in lines.values() for at in range(min(line), max(line) + 1)}
        printed |= {157 + (line + 1) * across - 1 for line in lines}  # and the newlines
        rows = [at for at in rows if at in printed or (at >= 157 and rng.random() < blank)]
    start, end = tokenizer.piece_to_id(START), tokenizer.piece_to_id(END)
    user, assistant = tokenizer.encode("user\n"), tokenizer.encode("assistant\n")
    newline = tokenizer.encode("\n")
    ids, labels = [1, start, *user], [-100] * (2 + len(user))
    first = len(ids)
    place_of_row = {at: first + index for index, at in enumerate(rows)}
    positions = [*range(first), *(first + at for at in rows)]
    ids, labels = ids + [0] * len(rows), labels + [-100] * len(rows)
    for index, (question, answer, _) in enumerate(rng.sample(page.questions, min(QUESTIONS, len(page.questions)))):
        prompt = [*([start, *user] if index else []), *tokenizer.encode(question), end, *newline, start, *assistant]
        reply = [*tokenizer.encode(answer), end]
        ids += [*prompt, *reply, *newline]
        labels += [*([-100] * len(prompt)), *reply, -100]
    positions += range(first + layout.tokens, first + layout.tokens + len(ids) - len(positions))
    asked = [(place_of_row[at], seen[at]) for at in rng.sample(sorted(seen), min(cells, len(seen)))]
    crops = cut(place(page.image, layout))
    return Reading(
        ids, labels, positions, crops, (layout.rows, layout.cols), rows if blank is not None else None, asked
    )


def printed_vectors(model: IXC2ForCausalLM, readings: list[Reading]) -> torch.Tensor:
    """The vectors of the rows that are kept; none is of the global view, so that is not computed."""
    crops = torch.from_numpy(np.concatenate([r.crops for r in readings]))
    with torch.set_grad_enabled(model.vit.pre_layrnorm.weight.requires_grad):
        maps = merge_2x2(model.vit(normalise(crops))[:, 1:])
    kept = []
    for part, one in zip(maps.split([len(r.crops) for r in readings]), readings, strict=True):
        whole = lay_out(torch.cat((torch.zeros_like(part[:1]), part)), *one.grid, model.separators)
        kept.append(whole[one.rows])
    return torch.cat(kept)


def pack(model: IXC2ForCausalLM, readings: list[Reading]) -> dict[str, Any]:
    """Readings as segments of one row of tokens."""
    labels = torch.tensor([[i for r in readings for i in (-100, *r.labels[1:])]])
    bounds = np.cumsum([0, *(len(r.ids) for r in readings)]).tolist()
    rows, targets = supervised_rows(labels)
    cells = [(start + at, token) for start, r in zip(bounds, readings, strict=False) for at, token in r.cells]
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([[i for r in readings for i in r.ids]]),
        "position_ids": torch.tensor([[i for r in readings for i in r.positions]]),
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
        "supervised": (
            torch.cat((rows, torch.tensor([at for at, _ in cells], dtype=torch.int64))),
            torch.cat((targets, torch.tensor([token for _, token in cells], dtype=torch.int64))),
        ),
    }
    if readings[0].rows is not None:
        return {**batch, "image_vectors": printed_vectors(model, readings)}
    crops = torch.from_numpy(np.concatenate([r.crops for r in readings]))
    return {**batch, "crops": crops, "grids": [r.grid for r in readings]}


def draw_pitch(rng: random.Random, step: int) -> float | None:
    """Pixels from one character to the next on a page; None for the font's own."""
    if step < ALIGNED_STEPS:
        return float(pages.CELL)
    roll = rng.random()
    if roll < 0.4:
        return rng.choice([float(pages.CELL), rng.uniform(24.0, 28.0)])
    if roll < 0.7:
        return rng.uniform(max(13.0, 26.0 - 13.0 * (step - ALIGNED_STEPS) / 300), 28.0)
    return None


def draw_pack(step: int, files: list[Path], tokenizer: Any, cells: int) -> list[Reading]:
    """The pages of one step, which depend on its number only: a stopped run goes on with the same."""
    rng = random.Random(f"read {step}")
    easy = 1.0 if step < ALIGNED_STEPS else 0.7 if step < SPARSE_STEPS else 0.2
    # unprinted rows come in little by little
    blank = max(0.0, step / SPARSE_STEPS - 0.5) if step < SPARSE_STEPS else None
    drawn: list[Reading] = []
    while sum(len(r.ids) for r in drawn) < PACK_TOKENS:
        drawn.append(reading(rng, files, tokenizer, easy, draw_pitch(rng, step), cells, blank))
    return drawn[:-1] if len(drawn) > 1 else drawn


def read(out: Path, steps: int, decay: int, frozen: int) -> None:
    """Stage `read`; for the first `frozen` steps the tower stays as `see` left it: a step is 1.6 times faster."""
    torch.manual_seed(2)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    config = configuration(tokenizer.vocab_size(), READ_INITIALIZER_RANGE)
    model = IXC2ForCausalLM._from_config(config, attn_implementation="segments")
    if not (out / "read.pt").exists():
        seen = torch.load(out / "see.pt", weights_only=True)["weights"]
        model.vit.load_state_dict({k.removeprefix("vit."): v for k, v in seen.items() if k.startswith("vit.")})
    run = Run(out / "read.pt", model, lr=2e-3)
    files, began, average = fonts.find(), time.time(), None
    while run.step < steps:
        model.vit.requires_grad_(run.step >= frozen)
        readings = draw_pack(run.step, files, tokenizer, cells=40 if run.step < SPARSE_STEPS else 8)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**pack(model, readings)).loss
        loss.backward()
        norm = run.update(schedule(run.step, steps, 100, decay))
        average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
        if run.step % 25 == 0 or run.step == steps:
            print(f"read {run.step}/{steps} loss {average:.3f} norm {norm:.2f} {time.time() - began:.0f}s", flush=True)
        if run.step % 50 == 0:
            run.save()
    run.save()


def export(out: Path, base: Path) -> None:
    """Stage `export`: the original form, in bfloat16 as the released checkpoint."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    model = IXC2ForCausalLM(configuration(tokenizer.vocab_size(), READ_INITIALIZER_RANGE))
    model.load_state_dict(torch.load(out / "read.pt", weights_only=True)["weights"])
    model.to(torch.bfloat16).save_pretrained(base, max_shard_size="4MB")
    (base / "tokenizer.model").write_bytes((out / "tokenizer.model").read_bytes())
    config = model.config
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
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vision_config": {
            key: getattr(config.vision_config, key)
            for key in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "projection_dim",
            )
        },
        "vocab_size": config.vocab_size,
    }
    (base / "config.json").write_text(json.dumps(original, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", "vocab", "see", "read", "export"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' states")
    parser.add_argument("--base", type=Path, help="where `export` writes (default: OUT/base)")
    parser.add_argument("--see-steps", type=int, default=1100)
    parser.add_argument("--read-steps", type=int, default=1700)
    parser.add_argument("--frozen-steps", type=int, default=1700, help="steps of `read` with the tower frozen")
    parser.add_argument("--see-decay", type=float, default=0.25, help="share of `see` in which the rate falls")
    parser.add_argument("--read-decay", type=float, default=0.3, help="share of `read` in which the rate falls")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.stage in ("all", "vocab"):
        make_vocabulary(chosen.out)
    if chosen.stage in ("all", "see"):
        see(chosen.out, chosen.see_steps, int(chosen.see_decay * chosen.see_steps))
    if chosen.stage in ("all", "read"):
        read(chosen.out, chosen.read_steps, int(chosen.read_decay * chosen.read_steps), chosen.frozen_steps)
    if chosen.stage in ("all", "export"):
        export(chosen.out, chosen.base or chosen.out / "base")


if __name__ == "__main__":
    main()
