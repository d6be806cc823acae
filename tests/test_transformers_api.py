"""Test the model in transformers' own pipelines and trainers, in TRL and in PEFT, without ixtune's trainer."""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stdout
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from records import write_image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    TextStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from trl import SFTConfig, SFTTrainer

from ixtune.base import resolve
from ixtune.data.images.image_file import ImageError
from ixtune.data.processor_files import write_processor_files
from ixtune.exporting import standalone
from ixtune.model.model import IXC2ForCausalLM

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ("image-text-to-text", "any-to-any")
GREEDY = {"max_new_tokens": 6, "do_sample": False}


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base as `ixtune export --profile transformers` leaves a model, and two images beside it."""
    place = tmp_path_factory.mktemp("api")
    folder = place / "mine" / "export"
    shutil.copytree(resolve("nano"), folder)
    write_processor_files(folder, 1)
    standalone.write(folder)
    write_image(place / "receipt.png", 80, 60)
    write_image(place / "page.png", 60, 100)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def rows(folder: Path) -> Dataset:
    """A data set of images and messages, as TRL documents it."""
    asked = [{"role": "user", "content": "How wide is it?"}, {"role": "assistant", "content": "80"}]
    images = [str(folder.parents[1] / name) for name in ("receipt.png", "page.png")]
    return Dataset.from_list([{"messages": asked, "images": [image]} for image in images])


def test_the_script_in_the_docs_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len([line for line in script.splitlines() if line and not line.startswith("#")]) <= 25
    monkeypatch.chdir(folder.parents[1])
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(script, "docs/transformers.md", "exec"), {})
    assert re.search(r"^\['.*', '.*'\]$", out.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM])
def test_the_other_auto_classes_give_the_same_network(auto: Any, folder: Path, model: Any) -> None:
    assert auto.__name__ in standalone.AUTO_MAP["config.json"]
    found = auto.from_pretrained(folder, dtype=torch.float32)
    assert type(found) is IXC2ForCausalLM
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_pipeline_for_any_kind_of_input_answers_too(folder: Path, processor: Any, model: Any) -> None:
    image = str(folder.parents[1] / "receipt.png")
    messages = [{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "How wide?"}]}]
    how = {"generate_kwargs": GREEDY, "return_full_text": False}
    made = [pipeline(task, model=model, processor=processor)(text=messages, **how) for task in PIPELINES]
    assert made[0][0]["generated_text"] == made[1][0]["generated_text"]


def test_images_are_loaded_from_addresses(folder: Path, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    serve = partial(QuietHandler, directory=str(folder.parents[1]))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/receipt.png"
        expected = processor(images=str(folder.parents[1] / "receipt.png"), text="How wide?", return_tensors="pt")
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        for part in ({"type": "image", "url": url}, {"type": "image_url", "image_url": {"url": url}}):
            messages = [{"role": "user", "content": [part, {"type": "text", "text": "How wide?"}]}]
            made = processor.apply_chat_template(messages, **how)
            assert torch.equal(made["crops"], expected["crops"])
            assert torch.equal(made["input_ids"], expected["input_ids"])
        assert torch.equal(processor(images=[url], text="?", return_tensors="pt")["crops"], expected["crops"])
        with pytest.raises(ImageError, match="404"):
            processor(images=[url + ".gone"], text="?", return_tensors="pt")
        server.shutdown()


def test_all_generation_modes_agree(folder: Path, processor: Any, model: Any) -> None:
    images = [str(folder.parents[1] / name) for name in ("receipt.png", "page.png")]
    asked = ["How wide is it?", "No image", "Two: <ImageHere> and <ImageHere>. Which is wider, the first or the last?"]
    shown = [images[:1], [], images]
    batch = processor(images=shown, text=asked, padding=True, return_tensors="pt")
    expected = model.generate(**batch, **GREEDY)
    for settings in (
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    ):
        made = model.generate(**batch, **{**GREEDY, **settings})
        times = settings.get("num_return_sequences", 1)
        assert made.shape[0] == len(asked) * times
        if settings.get("num_beams", 1) == 1:
            assert torch.equal(made[::times], expected), settings
        else:
            for at, of_one in enumerate(shown):
                alone = processor(images=of_one or None, text=asked[at], return_tensors="pt")
                single = model.generate(**alone, **{**GREEDY, **settings})
                assert torch.equal(single[:, -6:], made[2 * at : 2 * at + 2, -6:])
    alone = processor(images=images[:1], text=asked[0], return_tensors="pt")
    with redirect_stdout(io.StringIO()) as out:
        ids = model.generate(
            **alone, **GREEDY, streamer=TextStreamer(processor.tokenizer, True, skip_special_tokens=True)
        )
    answer = processor.decode(ids[0, alone["input_ids"].shape[1] :], skip_special_tokens=True)
    assert out.getvalue().strip() == answer.strip()
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    (made,) = ask(images=images[0], text=asked[0], generate_kwargs=GREEDY, return_full_text=False)
    assert made["generated_text"].strip() == answer.strip()


def test_hidden_states_and_attentions_are_returned(processor: Any, model: Any) -> None:
    inputs = processor(text="1 2", return_tensors="pt")
    out = model(**inputs, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.output(out.hidden_states[-1]), out.logits)
    assert "last_hidden_state" not in out
    model.set_attn_implementation("eager")
    seen = model(**inputs, output_attentions=True).attentions
    length = inputs["input_ids"].shape[1]
    assert [one.shape for one in seen] == [(1, model.config.num_attention_heads, length, length)] * len(seen)
    assert torch.allclose(seen[0].sum(-1), torch.ones(()))


def collate(processor: Any, rows: list[dict[str, Any]]) -> Any:
    messages = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "path": row["images"][0]}, {"type": "text", "text": "How wide?"}],
            },
            {"role": "assistant", "content": "80"},
        ]
        for row in rows
    ]
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    batch = processor.apply_chat_template(messages, **how, processor_kwargs={"padding": True})
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    return batch


def test_a_training_step_with_transformers_trainer(processor: Any, model: Any, rows: Dataset, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
    )
    before = model.output.weight.detach().clone()
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=lambda rows: collate(processor, rows))
    result = trainer.train()
    assert 0 < result.training_loss < 20
    assert not torch.equal(model.output.weight, before)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL passes it by itself
@pytest.mark.parametrize("answers_only", [False, True])
def test_a_training_step_with_trl_uses_the_images(
    folder: Path, rows: Dataset, tmp_path: Path, answers_only: bool
) -> None:
    """As TRL's own script calls it: by the folder's name, with the processor that is found there."""
    arguments = SFTConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to=[],
        max_length=None, assistant_only_loss=answers_only, learning_rate=1e-3,
    )  # fmt: skip
    lora = LoraConfig(target_modules=["wqkv"])
    trainer = SFTTrainer(str(folder), arguments, train_dataset=rows, peft_config=lora)
    batch = trainer.data_collator([rows[0], rows[1]])
    expected = IXC2ForCausalLM.forward(trainer.model.get_base_model(), **batch).loss
    found = trainer.compute_loss(trainer.model, dict(batch))
    assert torch.allclose(found, expected, rtol=1e-5)
    blank = {**batch, "crops": torch.zeros_like(batch["crops"])}
    assert not torch.allclose(trainer.compute_loss(trainer.model, blank), expected, rtol=1e-5)
    supervised = (batch["labels"] != -100).sum()
    assert (supervised < 20) == answers_only
    assert 0 < trainer.train().training_loss < 50  # where image positions are supervised too, it is large


def test_peft_loads_merges_and_swaps_adapters(folder: Path, processor: Any, model: Any, tmp_path: Path) -> None:
    inputs = processor(images=str(folder.parents[1] / "page.png"), text="How wide is it?", return_tensors="pt")
    plain = model(**inputs).logits
    made = {}
    adapted = get_peft_model(model, LoraConfig(target_modules=["wqkv", "w2"], r=2, task_type="CAUSAL_LM"))
    for name in ("first", "second"):
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.1)
        adapted.eval().save_pretrained(tmp_path / name)
        made[name] = adapted(**inputs).logits
    assert not torch.allclose(made["first"], made["second"])
    fresh = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "first", adapter_name="first")
    loaded.load_adapter(tmp_path / "second", adapter_name="second")
    for name in ("second", "first"):
        loaded.set_adapter(name)
        assert torch.allclose(loaded(**inputs).logits, made[name], atol=1e-5)
    with loaded.disable_adapter():
        assert torch.allclose(loaded(**inputs).logits, plain, atol=1e-5)
    hotswap_adapter(loaded, str(tmp_path / "second"), adapter_name="first")
    assert torch.allclose(loaded(**inputs).logits, made["second"], atol=1e-5)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "second", dtype=torch.float32)
    assert torch.allclose(auto(**inputs).logits, made["second"], atol=1e-5)
    merged = auto.merge_and_unload()
    assert type(merged) is IXC2ForCausalLM
    assert torch.allclose(merged(**inputs).logits, made["second"], atol=1e-4)
