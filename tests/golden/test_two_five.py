"""Compare InternLM-XComposer-2.5 with its reference: layouts, images, text, network (tolerances: golden/README.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from two_five import ROOT, TwoFive, largest, member

from ixtune.answering.prompt import Prompt
from ixtune.checkpoint.name_mapping import to_module_name
from ixtune.data.images.pixels import crops, open_image, place, place_and_cut
from ixtune.data.record import Place, Record, Turn
from ixtune.data.text.template import encode, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.family import TWO_FIVE
from ixtune.layout import plan
from ixtune.model import cache_name
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.vision import normalise, overview_of

EMBEDDINGS = LOGITS = 2e-5
OTHER_KERNEL, LOSS, GRADIENTS, PIXELS, VIEW = 5e-5, 1e-5, 1e-4, 1e-6, 1e-5
_FILES = TwoFive()
SAMPLES, CHATS = list(_FILES.samples["samples"]), list(_FILES.samples["chats"])
GRADIENTS_OF = [name for name in SAMPLES if (ROOT / f"grads_{name}.safetensors").is_file()]


@pytest.fixture(scope="module")
def reference() -> TwoFive:
    return TwoFive()


@pytest.fixture(scope="module")
def model(reference: TwoFive) -> IXC2ForCausalLM:
    return reference.model().requires_grad_(False)


def test_layouts_of_both_rules_match_the_reference(reference: TwoFive):
    cases = reference.json("layouts.json")["cases"]
    assert {case["rule"] for case in cases} == {"finetune", "inference"}
    for case in cases:
        layout = plan(case["w"], case["h"], case["hd_num"], member=member(case["rule"]))
        axis = "x" if layout.transposed else "y"
        sides = {"x": (layout.pad_left, layout.pad_right), "y": (layout.pad_top, layout.pad_bottom)}
        before, after = sides.pop(axis)
        assert [*sides.values()] == [(0, 0)], case
        found = {
            "transposed": layout.transposed,
            "resized_w": layout.resized_width,
            "resized_h": layout.resized_height,
            "pad_axis": axis,
            "pad_before": before,
            "pad_after": after,
            "final_w": layout.final_width,
            "final_h": layout.final_height,
            "rows": layout.rows,
            "cols": layout.cols,
            "tokens": layout.tokens,
        }
        assert found == {key: case[key] for key in found}, case


def test_images_and_views_match_the_reference(reference: TwoFive):
    outputs = reference.json("images.json")["outputs"]
    assert outputs
    for output in outputs:
        image = open_image(reference.folder / "images" / f"{output['name']}.png")
        layout = plan(*image.size, output["hd_num"], member=member(output["rule"]))
        placed = place(image, layout)
        assert placed.shape == (output["height"], output["width"], 3)
        assert hashlib.sha256(np.ascontiguousarray(placed).tobytes()).hexdigest() == output["pixel_sha256"], output
        cut = place_and_cut(image, layout)
        assert np.array_equal(cut, crops(placed, TWO_FIVE.crop))
        whole = normalise(torch.from_numpy(placed).permute(2, 0, 1))
        view = overview_of(torch.from_numpy(cut), layout.rows, layout.cols)[0]
        for points, values, tolerance in (
            (output["points"], whole, PIXELS),
            (output["global_points"], view, VIEW),
        ):
            for *at, value in points:
                assert abs(float(values[tuple(at)]) - value) <= tolerance, output


def _turns(sample: dict[str, Any]) -> tuple[Turn, ...]:
    return tuple(Turn(one["from"], one["value"]) for one in sample["conversations"])


def _compact(reference: TwoFive, ids: list[int]) -> torch.Tensor:
    known = reference.samples["real_id_to_compact_id"]
    return torch.tensor([known[str(token)] for token in ids])


@pytest.mark.parametrize("case", SAMPLES)
def test_template_tokens_and_labels_match_the_reference(
    reference: TwoFive, model: IXC2ForCausalLM, released_tokenizer: Path, case: str
):
    entry = reference.samples["samples"][case]
    tokens = [layout.tokens for layout in reference.layouts(entry["images"])]
    record = Record(case, (), _turns(entry), "golden25", Place("line", 1))
    ids, labels = expand(encode(record, tokens, Tokenizer(released_tokenizer), TWO_FIVE))
    assert torch.equal(_compact(reference, ids), reference.ids(case, model)[0])
    wanted = [label if label < 0 else int(_compact(reference, [label])) for label in labels]
    assert wanted[1:] == reference.labels(case)[0].tolist()[1:]


@pytest.mark.parametrize("talk", CHATS)
def test_prompts_of_the_original_template_match_the_reference(
    reference: TwoFive, model: IXC2ForCausalLM, released_tokenizer: Path, talk: str
):
    entry = reference.samples["chats"][talk]
    stored = [
        {"rows": layout.rows, "cols": layout.cols, "tokens": layout.tokens}
        for layout in reference.layouts(entry["images"])
    ]
    prompt = Prompt((Turn("user", entry["query"]),), tuple(stored))
    ids = prompt.ids(Tokenizer(released_tokenizer), "original", TWO_FIVE)
    assert torch.equal(_compact(reference, ids), reference.ids(talk, model)[0])


@pytest.mark.parametrize("case", SAMPLES)
def test_embeddings_logits_and_loss_match(reference: TwoFive, model: IXC2ForCausalLM, case: str):
    entry, expected = reference.samples["samples"][case], reference.tensors
    embeds, rows = model.embed(reference.ids(case, model), **reference.images(entry["images"]))
    assert largest(embeds - expected[f"{case}.inputs_embeds"]) <= EMBEDDINGS
    wanted = reference.rows(case)
    assert rows is wanted is None or torch.equal(rows, wanted)
    out = model(inputs_embeds=embeds, image_rows=rows, labels=reference.labels(case))
    assert largest(out.logits - expected[f"{case}.logits"]) <= OTHER_KERNEL
    assert abs(out.loss.item() - entry["loss"]) <= LOSS


@pytest.mark.parametrize("case", GRADIENTS_OF)
def test_gradients_match(reference: TwoFive, case: str):
    model = reference.model()
    images = reference.images(reference.samples["samples"][case]["images"])
    model(input_ids=reference.ids(case, model), labels=reference.labels(case), **images).loss.backward()
    parameters = dict(model.named_parameters())
    checked = 0
    for name, gradient in load_file(ROOT / f"grads_{case}.safetensors").items():
        ours = parameters[to_module_name(name)].grad
        ours = torch.zeros_like(gradient) if ours is None else ours
        assert largest(ours - gradient) <= GRADIENTS * float(gradient.abs().max()) + 1e-7, name
        checked += 1
    assert checked


@pytest.mark.parametrize("talk", CHATS)
def test_greedy_answers_match(reference: TwoFive, model: IXC2ForCausalLM, talk: str):
    entry, expected = reference.samples["chats"][talk], reference.tensors
    embeds, rows = model.embed(reference.ids(talk, model), **reference.images(entry["images"]))
    assert largest(embeds - expected[f"{talk}.inputs_embeds"]) <= EMBEDDINGS
    out = model(inputs_embeds=embeds, image_rows=rows, use_cache=True)
    ids = []
    for step in range(len(entry["greedy_ids"])):
        logits = out.logits[:, -1]
        assert largest(logits[0] - expected[f"{talk}.step_logits"][step]) <= OTHER_KERNEL
        ids.append(int(logits.argmax()))
        out = model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=out[cache_name.NAME], use_cache=True)
    assert ids == entry["greedy_ids"]
