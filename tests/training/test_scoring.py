"""Test scores during training: chosen records, batches, the best step, and unusable references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_run import prepare_texts, text_recipe

from ixtune.answering.answerer import Answer, Answerer
from ixtune.answering.batches import batches
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.sources.source import Source
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.model import generation
from ixtune.planning.memory_options import MemoryOptions
from ixtune.training.assembly import Network, build
from ixtune.training.batch import ImageSource
from ixtune.training.inputs import open_inputs
from ixtune.training.monitoring import answers, scoring
from ixtune.training.monitoring.validation import take_note
from ixtune.training.processes import parallel
from ixtune.training.run import train
from ixtune.training.state.progress import Progress


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Return twelve sums of different lengths, each with a second right answer."""
    folder = tmp_path_factory.mktemp("sums")
    rows = [
        {"id": f"s{n}", "question": f"{'please ' * n}{n} and {n}?", "answers": [str(2 * n), f"{2 * n}.0"]}
        for n in range(12)
    ]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    options = PrepareOptions(hd_num=1)
    prepare([Source(path=str(folder / "data.json"))], folder / "prepared", base=resolve("nano"), options=options)
    return TrainingSet.load([folder / "prepared"])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Return the embedded base in fp32 with a new adapter with dropout."""
    folder = tmp_path_factory.mktemp("network")
    recipe = text_recipe(folder, prepare_texts(folder / "texts"), "adapter.quantize=none", "adapter.dropout=0.5")
    return build(recipe, open_inputs(recipe), MemoryOptions(0, 1, False), lambda _: None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_base(resolve("nano"))


def test_the_scored_records_depend_only_on_the_seed():
    assert answers.draw(1000, 64, 0) == answers.draw(1000, 64, 0)
    assert answers.draw(1000, 64, 0) != answers.draw(1000, 64, 1)
    assert answers.draw(1000, 64, 0) == sorted(set(answers.draw(1000, 64, 0)))
    assert max(answers.draw(1000, 64, 0)) > 500, "from the beginning of the set only"
    assert answers.draw(3, 64, 0) == [0, 1, 2]


def test_batches_hold_every_record_once_within_the_token_limit(records: TrainingSet):
    asked = [0, 2, 3, 5, 7, 11]
    longest = [records.lengths[at] + records.supervised[at] + answers.SPARE_TOKENS for at in asked]
    sizes = [answers.size_of(records.record(index)) for index in asked]
    assert [size.own_tokens for size in sizes] == longest
    made = batches(sizes, max_tokens=2 * max(longest))
    assert sorted(at for batch in made for at in batch) == list(range(len(asked)))
    assert max(map(len, made)) > 1
    for batch in made:
        assert len(batch) * max(longest[at] for at in batch) <= 2 * max(longest)
    assert batches(sizes, max_tokens=1) == [[at] for at in range(len(asked))], "too long for any batch, so alone"


def test_answers_do_not_depend_on_the_rest_of_the_batch(network: Network, records: TrainingSet, tokenizer: Tokenizer):
    """In fp32, left padding must not change a token, and each answer has its own length limit."""
    answerer = Answerer(network.wrapped, tokenizer, ImageSource(records.files), Settings())
    asked = [records.record(index) for index in (0, 5, 11)]
    with answers.asking(network.wrapped, torch.float32):
        together = answers.answer(answerer, asked)
        alone = [answers.answer(answerer, [record])[0] for record in asked]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_an_endless_answer_is_cut_at_the_length_of_its_own_reference(
    network: Network, records: TrainingSet, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """The limit is not that of the longest in the batch: 8 has one token less than 10."""
    asked = [records.record(4), records.record(5)]
    one = tokenizer.encode("1")
    assert len(one) == 1
    monkeypatch.setattr(
        generation, "generate", lambda _, prompts, *__, **how: [one * how["max_new_tokens"] for _ in prompts]
    )
    found = answers.answer(Answerer(network.wrapped, tokenizer, ImageSource(records.files), Settings()), asked)
    supervised = [records.supervised[index] for index in (4, 5)]
    assert supervised[1] > supervised[0]
    assert [len(answer.text) for answer in found] == [2 * count + answers.SPARE_TOKENS for count in supervised]
    assert {answer.finish for answer in found} == {"length"}


def test_scores_are_ratios_of_sums_over_the_scored_records(
    network: Network, records: TrainingSet, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """For 2, 6 and 10, the second answer equals its other reference, and the third has one of two digits wrong."""
    said = {"s1": "2", "s3": "6.0", "s5": "11"}
    monkeypatch.setattr(answers, "answer", lambda _, asked: [Answer(said[record["id"]], 1, "stop") for record in asked])
    found = scoring.measure(
        network.wrapped, records, [1, 3, 5], ["exact_match", "cer"], ImageSource(records.files), tokenizer, 100,
        torch.float32,
    )  # fmt: skip
    # edits over lengths of the nearest reference: 0/1, 0/3, 1/2
    assert found == {"exact_match": pytest.approx(2 / 3), "cer": pytest.approx(1 / 6)}


def test_two_processes_answer_every_record_once(
    network: Network, records: TrainingSet, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """Each process has its own batches; the sums equal those of a single process."""
    asked: list[str] = []
    sums: list[dict[tuple[str, int], tuple[float, float]]] = []

    def answer(_: object, batch: list[dict[str, Any]]) -> list[Answer]:
        asked.extend(record["id"] for record in batch)
        return [Answer(record["id"][1:], 1, "stop") for record in batch]

    def merged(mine: dict[tuple[str, int], tuple[float, float]]) -> dict[tuple[str, int], tuple[float, float]]:
        sums.append(mine)
        return mine

    def measure() -> dict[str, float]:
        images = ImageSource(records.files)
        return scoring.measure(network.wrapped, records, range(12), ["anls"], images, tokenizer, 150, torch.float32)

    monkeypatch.setattr(answers, "answer", answer)
    monkeypatch.setattr(parallel, "merged", merged)
    monkeypatch.setattr(parallel, "any_of", bool)
    monkeypatch.setattr(parallel, "largest", int)
    measure()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_several", lambda: True)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        measure()
    assert sorted(asked[:12]) == sorted(asked[12:]) == sorted(f"s{n}" for n in range(12))
    alone, first, second = sums
    assert {**first, **second} == alone
    assert first
    assert second
    assert not first.keys() & second.keys()


def test_measuring_changes_neither_mode_weights_nor_random_state(
    network: Network, records: TrainingSet, tokenizer: Tokenizer
):
    network.wrapped.train()
    before = {name: value.clone() for name, value in network.wrapped.state_dict().items()}
    state = torch.get_rng_state()
    scoring.measure(
        network.wrapped, records, [0, 1], ["anls"], ImageSource(records.files), tokenizer, 1000, torch.float32
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert network.wrapped.training
    assert all(module.training for module in network.wrapped.modules() if isinstance(module, torch.nn.Dropout))
    after = network.wrapped.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.wrapped.parameters())


@pytest.mark.parametrize(
    ("by", "second", "better"),
    [
        ("loss", {"loss": 0.9, "anls": 0.1, "cer": 0.9}, True),
        ("loss", {"loss": 1.0, "anls": 0.9, "cer": 0.1}, False),
        ("anls", {"loss": 2.0, "anls": 0.6, "cer": 0.9}, True),
        ("anls", {"loss": 0.1, "anls": 0.4, "cer": 0.1}, False),
        ("cer", {"loss": 2.0, "anls": 0.1, "cer": 0.4}, True),
        ("cer", {"loss": 0.1, "anls": 0.9, "cer": 0.6}, False),
        ("anls", {"loss": 0.9, "anls": 0.5, "cer": 0.5}, True),
        ("anls", {"loss": 1.0, "anls": 0.5, "cer": 0.5}, False),
        ("cer", {"loss": 0.9, "anls": 0.5, "cer": 0.5}, True),
    ],
)
def test_best_by_decides_what_is_better_and_the_loss_breaks_ties(by: str, second: dict[str, float], better: bool):
    progress = Progress()
    assert take_note(progress, {"loss": 1.0, "anls": 0.5, "cer": 0.5}, 10, by, 1)
    assert take_note(progress, second, 20, by, 1) is better
    assert progress.stopped_early is not better
    assert progress.best_step == (20 if better else 10)
    assert progress.best_loss == (second["loss"] if better else 1.0)
    assert progress.best_scores["anls"] == (second["anls"] if better else 0.5)


def test_patience_counts_from_the_best_measurement():
    progress = Progress()
    for step, value in enumerate([0.1, 0.3, 0.2, 0.4, 0.4, 0.3]):
        assert not progress.stopped_early
        take_note(progress, {"loss": 1.0, "anls": value}, step, "anls", 2)
    assert progress.stopped_early
    assert (progress.best_step, progress.worse_measurements) == (3, 2)


def test_a_score_that_fits_no_reference_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console

    data = prepare_texts(tmp_path / "texts", count=3)
    recipe = text_recipe(
        tmp_path, data, f"data.validation={data}", "training.scores=[anls, field_f1]", "training.score_records=2"
    )
    monkeypatch.setattr("ixtune.training.run.build", None)
    with pytest.raises(IxtuneError, match="field_f1 cannot judge answers to 2 of 2 questions") as refused:
        train(recipe, Console(quiet=True))
    assert "remove the score from training.scores" in refused.value.hint
    assert len(refused.value.notes) == 2
    assert "record t" in refused.value.notes[0]
    assert "the reference holds no fields: '" in refused.value.notes[0]
    assert not (tmp_path / "run").exists()
