"""Compare the network with the reference in float32; the tolerances are in golden/README.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import Tiny, largest
from torch import nn

from ixtune.checkpoint.name_mapping import to_module_name, to_original_name
from ixtune.model import cache_name
from ixtune.model.loss import supervised_rows
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.plora import ImageRows, PLoRA, apply

EMBEDDINGS = LOGITS = 2e-5
LOGITS_OTHER_KERNEL = 5e-5
VISION, LOSS, LORA_LOGITS, GRADIENTS = 1e-5, 1e-5, 3e-4, 1e-4


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> IXC2ForCausalLM:
    return tiny.model().requires_grad_(False)


def test_vision_matches_before_and_after_the_projector(tiny: Tiny, model: IXC2ForCausalLM, image: str) -> None:
    expected = load_file(tiny.folder / "vision.safetensors")
    crops, grid = tiny.crops(image)
    vectors = model.get_image_vectors(crops, [grid])
    assert largest(vectors - expected[f"{image}.merged_before_projector"]) <= VISION
    assert largest(model.vision_proj(vectors) - expected[f"{image}.projected"]) <= VISION


def test_tower_output_has_no_post_layer_norm(tiny: Tiny, model: IXC2ForCausalLM) -> None:
    from ixtune.model.vision import chunks_of_views

    expected = load_file(tiny.folder / "vision.safetensors")
    names = [key.split(".")[0] for key in expected if key.endswith("vit_last_hidden_no_post_ln")]
    assert names
    for name in names:
        crops, grid = tiny.crops(name)
        hidden = model.vit(next(chunks_of_views(crops, [grid], 64, torch.float32)))
        assert largest(hidden - expected[f"{name}.vit_last_hidden_no_post_ln"]) <= VISION


def test_embeddings_and_image_mask_match(tiny: Tiny, model: IXC2ForCausalLM, sample: str) -> None:
    entry = tiny.samples["samples"][sample]
    images = tiny.images(entry["images"] or [])
    ids, expected_rows = tiny.ids(sample), tiny.image_rows(sample)
    expected = tiny.tensors[f"{sample}.inputs_embeds"]
    real = tiny.tensors[f"{sample}.attention_mask"].bool()
    if images and expected_rows is not None and sum((ids == 0).sum(1)) < _tokens_of(tiny, entry["images"]):
        # The reference cuts through the image; ixtune never does, so the cut is made here.
        vectors = model.get_image_vectors(**images)[: int((ids == 0).sum())]
        embeds, rows = model.embed(ids, image_vectors=vectors)
    else:
        embeds, rows = model.embed(ids, **images)
    assert largest((embeds - expected)[real]) <= EMBEDDINGS
    assert (rows is None) == (expected_rows is None)
    assert rows is None or torch.equal(rows, expected_rows)


def _tokens_of(tiny: Tiny, images: list) -> int:
    flat = [n for name in images for n in (name if isinstance(name, list) else [name])]
    return sum(tiny.samples["images"][name]["tokens"] for name in flat)


def test_logits_and_loss_match(tiny: Tiny, model: IXC2ForCausalLM, sample: str) -> None:
    mask = tiny.tensors[f"{sample}.attention_mask"]
    out = model(
        inputs_embeds=tiny.tensors[f"{sample}.inputs_embeds"],
        image_rows=tiny.image_rows(sample),
        attention_mask=mask,
        labels=tiny.labels(sample),
    )
    assert largest((out.logits - tiny.tensors[f"{sample}.logits"])[mask.bool()]) <= LOGITS
    assert abs(out.loss.item() - tiny.samples["samples"][sample]["loss"]) <= LOSS


@pytest.mark.parametrize("attention", ["eager", "sdpa", "segments"])
def test_every_attention_function_gives_the_reference_logits(tiny: Tiny, attention: str) -> None:
    model = tiny.model().requires_grad_(False)
    model.set_attn_implementation(attention)
    for sample in tiny.samples["samples"]:
        embeds, mask = tiny.tensors[f"{sample}.inputs_embeds"], tiny.tensors[f"{sample}.attention_mask"].bool()
        for row in range(len(embeds)):
            length = int(mask[row].sum())
            boundaries = {}
            if attention == "segments":
                boundaries = {"cu_seq_lens_q": torch.tensor([0, length], dtype=torch.int32), "max_length_q": length}
            image = tiny.tensors[f"{sample}.im_mask"][row, :length].bool().nonzero().squeeze(1)
            rows = image if len(image) else None
            out = model(inputs_embeds=embeds[row : row + 1, :length], image_rows=rows, **boundaries)
            assert largest(out.logits[0] - tiny.tensors[f"{sample}.logits"][row, :length]) <= LOGITS_OTHER_KERNEL


def _twice(tiny: Tiny, sample: str) -> dict[str, Any]:
    """Return a sample as two records that differ only in the second half of the last answer."""
    ids, length = tiny.ids(sample), int(tiny.tensors[f"{sample}.attention_mask"].sum())
    rows, targets = supervised_rows(tiny.labels(sample))
    image_rows = tiny.image_rows(sample)
    cut = max((int(rows[-1]) + length) // 2, 0 if image_rows is None else int(image_rows[-1]) + 1)
    again = torch.where(rows < cut, rows, rows + length - cut)
    return {
        "input_ids": torch.cat((ids[:, :length], ids[:, cut:length]), dim=1),
        "position_ids": torch.tensor([[*range(length), *range(cut, length)]]),
        "cu_seq_lens_q": torch.tensor([0, cut, length, 2 * length - cut], dtype=torch.int32),
        "max_length_q": cut,
        "parents": (-1, 0, 0),
        "supervised": (torch.cat((rows, again)), torch.cat((targets, targets))),
    }


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_match(tiny: Tiny, grads_of: str, shared: bool) -> None:
    entry = tiny.samples["samples"][grads_of]
    model = tiny.model()
    taken = {
        "input_ids": tiny.ids(grads_of),
        "attention_mask": tiny.tensors[f"{grads_of}.attention_mask"],
        "labels": tiny.labels(grads_of),
    }
    if shared:
        if len(taken["input_ids"]) > 1:
            pytest.skip("a batch of several rows is no pack")
        model.set_attn_implementation("segments")
        taken = _twice(tiny, grads_of)
    loss = model(**taken, **tiny.images(entry["images"] or [])).loss
    assert abs(loss.item() - entry["loss"]) <= LOSS
    loss.backward()
    expected = load_file(tiny.folder / entry["grads_file"].split("/")[-1])
    parameters = dict(model.named_parameters())
    assert {to_module_name(name) for name in (*expected, *(entry["grad_none"] or ()))} == set(parameters)
    for name, gradient in expected.items():
        ours = parameters[to_module_name(name)].grad
        # Where no row takes part ixtune has no gradient; the reference adds zero times PLoRA to get zeros.
        ours = torch.zeros_like(gradient) if ours is None else ours
        assert largest(ours - gradient) <= GRADIENTS * float(gradient.abs().max()) + 1e-7, name
    for name in entry["grad_none"] or ():
        ours = parameters[to_module_name(name)].grad
        assert ours is None or largest(ours) == 0, name


def test_lora_logits_loss_and_gradients_match(tiny: Tiny) -> None:
    entry, expected = tiny.samples["lora"], load_file(tiny.folder / "lora.safetensors")
    targets = [name.rsplit(".", 1)[-1] for name in entry["target_modules"]]
    lora = LoraConfig(r=entry["r"], lora_alpha=entry["alpha"], target_modules=targets, lora_dropout=0.0)
    model = get_peft_model(tiny.model(), lora).eval()
    parameters = dict(model.named_parameters())

    def ours(name: str) -> nn.Parameter:
        return parameters["base_model.model." + name.replace(".weight", ".default.weight")]

    for key, value in expected.items():
        if key.startswith("weight."):
            ours(key.removeprefix("weight.")).data.copy_(value)
    sample = entry["sample"]
    out = model(
        input_ids=tiny.ids(sample),
        labels=tiny.labels(sample),
        **tiny.images(tiny.samples["samples"][sample]["images"]),
    )
    assert largest(out.logits - expected["logits"]) <= LORA_LOGITS
    assert abs(out.loss.item() - entry["loss"]) <= LOSS
    out.loss.backward()
    gradients = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    checked = 0
    for name, gradient in gradients.items():
        if ".lora_" in name:
            checked += 1
            assert largest(ours(name).grad - gradient) <= GRADIENTS * float(gradient.abs().max()) + 1e-7, name
    assert checked == 2 * len(targets) * model.config.num_hidden_layers


def test_plora_layer_alone_matches(tiny: Tiny) -> None:
    unit = load_file(tiny.folder / "plora_unit.safetensors")
    out_features, in_features = unit["weight"].shape
    linear = nn.Linear(in_features, out_features, bias=False)
    plora = PLoRA(in_features, out_features, unit["Plora_A"].shape[0], float(unit["scaling"]))
    linear.weight.data, plora.A.weight.data, plora.B.weight.data = unit["weight"], unit["Plora_A"], unit["Plora_B"]
    mixed = unit["mask"].bool().reshape(-1).nonzero().squeeze(1)
    everywhere = torch.arange(unit["mask"].numel())
    for rows, name in ((mixed, "out_mixed"), (None, "out_none"), (everywhere, "out_all")):
        assert largest(apply(linear, plora, unit["x"], ImageRows.of(rows)) - unit[name]) <= 8e-6


def test_greedy_ids_and_step_logits_match(tiny: Tiny, model: IXC2ForCausalLM, chat: str) -> None:
    entry = next(c for c in tiny.samples["chats"] if c["name"] == chat)
    tensors = tiny.tensors
    if f"chat_{chat}.input_ids" in tensors:
        prompt = {"input_ids": tensors[f"chat_{chat}.input_ids"].long()}
    else:
        rows = tensors[f"chat_{chat}.im_mask"].bool().reshape(-1).nonzero().squeeze(1)
        prompt = {"inputs_embeds": tensors[f"chat_{chat}.inputs_embeds"], "image_rows": rows}
    out = model(**prompt, use_cache=True)
    ids = []
    for step in range(len(entry["greedy_ids_8"])):
        logits = out.logits[:, -1]
        assert largest(logits[0] - tensors[f"chat_{chat}.step_logits"][step]) <= LOGITS_OTHER_KERNEL
        ids.append(int(logits.argmax()))
        out = model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=out[cache_name.NAME], use_cache=True)
    assert ids == entry["greedy_ids_8"]


def _last_logits(tiny: Tiny, model: IXC2ForCausalLM, count: int | None = None) -> torch.Tensor:
    sample = tiny.samples["rope"]["sample"]
    embeds, rows = tiny.tensors[f"{sample}.inputs_embeds"], tiny.image_rows(sample)
    if count is not None:
        embeds, rows = embeds[:, :count], rows[rows < count]
    return model(inputs_embeds=embeds, image_rows=rows).logits


def test_dynamic_ntk_of_a_new_model_matches(tiny: Tiny) -> None:
    expected = load_file(tiny.folder / "rope.safetensors")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1_000_000.0}
    model = tiny.model(rope_parameters=rope, max_position_embeddings=200).requires_grad_(False)
    fresh = expected["fresh.logits_short64"]
    assert largest(_last_logits(tiny, model, 64) - fresh) <= LOGITS_OTHER_KERNEL
    long = expected["dynamic_factor2_maxpos200.logits_last16"]
    assert largest(_last_logits(tiny, model)[:, -16:] - long) <= LOGITS_OTHER_KERNEL
    assert largest(_last_logits(tiny, model, 64) - fresh) <= LOGITS_OTHER_KERNEL, "the stretch was kept"


def test_the_stateful_ntk_of_the_reference_is_available_by_option(tiny: Tiny) -> None:
    expected = load_file(tiny.folder / "rope.safetensors")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1_000_000.0}
    model = tiny.model(rope_parameters=rope, max_position_embeddings=200, ntk_stateful=True).requires_grad_(False)
    _last_logits(tiny, model)
    assert largest(_last_logits(tiny, model, 64) - expected["after_long.logits_short64"]) <= LOGITS_OTHER_KERNEL


def test_linear_rope_scaling_matches(tiny: Tiny) -> None:
    expected = load_file(tiny.folder / "rope.safetensors")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1_000_000.0}
    model = tiny.model(rope_parameters=rope).requires_grad_(False)
    assert largest(_last_logits(tiny, model)[:, -16:] - expected["linear_factor2.logits_last16"]) <= LOGITS_OTHER_KERNEL


def test_released_and_module_names_map_one_to_one(golden) -> None:
    import json

    names = json.loads((golden / "full_7b_tensor_index.json").read_text(encoding="utf-8"))
    assert all(to_original_name(to_module_name(name)) == name for name in names)
    assert len({to_module_name(name) for name in names}) == len(names)
