"""Test a file of questions: answered in batches, resumed after a kill, invalid questions reported."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pdf_files import write_pdf
from records import write_image

from ixtune.answering.answerer import Answerer
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.data import benchmarks
from ixtune.data.image_arguments import expand
from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.images.pixels import open_image
from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError, UsageError
from ixtune.evaluation import predict, questions
from ixtune.evaluation.questions import Asked
from ixtune.evaluation.session import Loaded
from ixtune.training.batch import ImageSource

LINES: list[dict[str, Any]] = [
    {"id": "first", "question": "How many?", "image": "a.png"},
    {"question": "What stands here?", "images": ["a.png", "b.png"]},
    {"id": 7, "question": "Say something."},
    {"id": "placed", "question": "Before <ImageHere> after", "image": "b.png"},
    {"id": "last", "question": "How many?", "image": "b.png"},
]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded("nano", None, None)


def write(folder: Path, lines: list[Any]) -> Path:
    write_image(folder / "a.png", 60, 40)
    write_image(folder / "b.png", 30, 90)
    path = folder / "questions.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def asked(tmp_path: Path, loaded: Loaded) -> Asked:
    return ask(write(tmp_path / "data", LINES), loaded)


def ask(path: Path, loaded: Loaded, **how: Any) -> Asked:
    return questions.from_file(Source(path=str(path), **how), loaded.view(1), loaded.tokenizer)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_keep_the_order_of_questions_for_any_batch_size(
    loaded: Loaded, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (1, 2, 5):
        outcome = predict.predict_all(loaded, asked, tmp_path / f"{size}.jsonl", Settings(6), batch_size=size)
        found.append(read(tmp_path / f"{size}.jsonl"))
        assert outcome.tokens == sum(line["tokens"] for line in found[-1])
        assert (outcome.answers, outcome.resumed, outcome.rejects) == (5, 0, 0)
    assert found[0] == found[1] == found[2]
    assert [line["id"] for line in found[0]] == ["first", "line-2", "7", "placed", "last"]
    assert found[0][1]["images"] == ["a.png", "b.png"]
    assert found[0][1]["question"] == "<ImageHere><ImageHere>What stands here?"
    alone = predict.predict_one(loaded, "How many?", [tmp_path / "data" / "a.png"], loaded.view(1), Settings(6))
    assert (alone.text, alone.tokens, alone.finish) == tuple(found[0][0][key] for key in ("answer", "tokens", "finish"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "5.jsonl", "data"]
    answerer = Answerer(loaded.model, loaded.tokenizer, ImageSource(asked.files), Settings(6))
    prompts = [question.prompt for question in asked.questions]
    assert answerer.batches(prompts, 8) == [[2, 0, 3, 4, 1]]
    longest = max(sum(prompt.image_tokens) for prompt in prompts)
    bytes_of_a_token = (
        loaded.base_model.config.num_hidden_layers
        * 2
        * 2
        * (loaded.base_model.config.num_key_value_heads * loaded.base_model.config.head_dim)
    )  # bf16
    monkeypatch.setattr("ixtune.answering.answerer.BATCH_PREFIX_BYTES", longest * bytes_of_a_token)
    made = answerer.batches(prompts, 8)
    assert len(made) > 1, "the pages of a batch are bounded"
    for batch in made:
        pages = {prompts[at].paths: sum(prompts[at].image_tokens) for at in batch}
        assert sum(pages.values()) <= longest


class Killed(BaseException):
    """Raised to simulate the end of the process."""


@pytest.mark.parametrize("sampled", [False, True])
def test_a_killed_run_resumes_to_the_same_answers(loaded: Loaded, asked: Asked, tmp_path: Path, sampled: bool) -> None:
    settings = Settings(6, do_sample=sampled, seed=3)
    predict.predict_all(loaded, asked, tmp_path / "straight.jsonl", settings, batch_size=2)
    calls: list[int] = []

    def die(count: int) -> None:
        calls.append(count)
        if len(calls) == 3:
            raise Killed

    with pytest.raises(Killed):
        predict.predict_all(loaded, asked, tmp_path / "out.jsonl", settings, batch_size=2, progress=die)
    assert not (tmp_path / "out.jsonl").exists()
    journal = tmp_path / ".out.jsonl.unfinished"
    with open(journal, "ab") as file:
        file.write(b'{"index": 4, "answ')
    with pytest.raises(IxtuneError, match="another prediction into this file was not finished"):
        predict.predict_all(loaded, asked, tmp_path / "out.jsonl", replace(settings, seed=4), batch_size=2)
    outcome = predict.predict_all(loaded, asked, tmp_path / "out.jsonl", settings, batch_size=2)
    assert outcome.resumed == sum(calls) == 4
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert not journal.exists()
    # records of several sources may have the same id; each keeps its own answer
    twins = replace(asked, questions=tuple(replace(question, id="same") for question in asked.questions))
    predict.predict_all(loaded, twins, tmp_path / "twins.jsonl", settings, batch_size=2)
    made = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("straight", "twins")
    ]
    assert [one["answer"] for one in made[1]] == [one["answer"] for one in made[0]]
    with pytest.raises(IxtuneError, match="exists already"):
        predict.predict_all(loaded, asked, tmp_path / "out.jsonl", settings, batch_size=2)


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        (0, "there is no answer yet, and nothing was written"),
        (4, "4 answers are kept; rerun the same command to resume"),
    ],
)
def test_ctrl_c_says_how_many_answers_are_kept(
    loaded: Loaded, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int, said: str
) -> None:
    calls: list[int] = []

    def interrupt(self: Answerer, prompts: Any) -> Any:
        if len(calls) * 2 == finished:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return real(self, prompts)

    real = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", interrupt)
    with pytest.raises(KeyboardInterrupt, match=said):
        predict.predict_all(loaded, asked, tmp_path / "out.jsonl", Settings(6), batch_size=2)
    assert len(list(tmp_path.glob(".out.jsonl.unfinished"))) == bool(finished)


def test_invalid_lines_are_reported_with_line_and_reason(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(write_image(tmp_path / "x.png").read_bytes())
    lines: list[Any] = [
        "{not json\n",
        ["a list"],
        {"id": True, "question": "x"},
        {"id": "no text"},
        {"question": "x", "images": {"a": "png"}},
        {"question": "x", "image": "a.png", "images": ["a.png"]},
        {"question": "x", "image": "https://example.com/a.png"},
        {"question": "x", "image": "../secret.png"},
        {"question": "x", "image": "absent.png"},
        {"question": "<ImageHere> <ImageHere>", "image": "a.png"},
        {"question": "a piece [UNUSED_TOKEN_145] of the template"},
        {"id": "good", "question": "x"},
        {"id": "good", "question": "again"},
    ]
    path = write(tmp_path / "data", lines)
    asked = ask(path, loaded)
    assert [question.id for question in asked.questions] == ["good"]
    assert [(reject.place.at, reject.reason.value) for reject in asked.rejects] == [
        (1, "not_json"),
        (2, "not_a_record"),
        (3, "bad_id"),
        (4, "missing_field"),
        (5, "bad_image_field"),
        (6, "bad_image_field"),
        (7, "picture_remote"),
        (8, "path_outside_root"),
        (9, "picture_missing"),
        (10, "too_many_placeholders"),
        (11, "special_token_in_text"),
        (13, "duplicate_id"),
    ]
    outcome = predict.predict_all(loaded, asked, tmp_path / "out.jsonl", Settings(2), batch_size=4)
    assert outcome.rejects == 12
    assert [row["line"] for row in read(tmp_path / "out.jsonl.rejects.jsonl")] == [*range(1, 12), 13]


def test_an_empty_or_missing_file_is_an_error(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name, words in (("empty.jsonl", "empty|holds no record"), ("absent.jsonl", "no such file")):
        with pytest.raises(IxtuneError, match=words):
            ask(tmp_path / name, loaded)


def test_every_way_to_give_an_image_works_as_in_prepare_and_evaluate(loaded: Loaded, tmp_path: Path) -> None:
    image = write_image(tmp_path / "data" / "cat.png", 60, 40)
    base64_text = base64.b64encode(image.read_bytes()).decode()
    ways: list[dict[str, Any]] = [
        {"image": "cat.png", "images": []},
        {"images": ["cat.png"], "image": None},
        {"image": ["cat.png"]},
        {"image": {"path": "cat.png"}},
        {"image": f"file://{image}"},
        {"image": f"data:image/png;base64,{base64_text}"},
        {"image": "CAT.PNG"},
    ]
    lines = [{"id": str(at), "question": "What is it?", "answer": "A cat."} | way for at, way in enumerate(ways)]
    path = write(tmp_path / "data", lines)
    asked = ask(path, loaded)
    assert (len(asked.questions), asked.rejects) == (len(ways), ())
    contents = {question.prompt.images[0]["content"] for question in asked.questions}
    assert contents == {hash_of_file(image)}
    shown = [asked.files.open(question.prompt.images[0]).tobytes() for question in asked.questions]
    assert set(shown) == {open_image(image).tobytes()}
    assert {question.prompt.turns[-1].text for question in asked.questions} == {"<ImageHere>What is it?"}
    items = benchmarks.read("questions", path, images=tmp_path / "kept").items
    assert [hash_of_file(Path(item.images[0])) for item in items] == [hash_of_file(image)] * len(ways)
    prepare([Source(path=str(path))], tmp_path / "set", base=resolve("nano"), options=PrepareOptions(hd_num=1))
    rows = store.load(tmp_path / "set").dataset
    assert [row["pictures"][0]["content"] for row in rows] == [hash_of_file(image)] * len(ways)


def test_tables_and_conversations_are_asked_as_prepared(loaded: Loaded, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,How many?,3\na.png,Which?,\n")
    (tmp_path / "plain.csv").write_text("file,key\na.png,x7\n")
    turns = [("user", "<image>One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns], "images": ["a.png"]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    assert [q.prompt.turns[-1].text for q in ask(tmp_path / "q.csv", loaded).questions] == [
        "<ImageHere>How many?",
        "<ImageHere>Which?",
    ]
    (one,) = ask(tmp_path / "plain.csv", loaded, columns=(("image", "file"), ("id", "key")), question="What?").questions
    assert (one.id, one.prompt.turns[0].text) == ("x7", "<ImageHere>What?")
    llava = {
        "id": "0001",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nOne?"}, {"from": "gpt", "value": "1"}],
    }
    (tmp_path / "llava.json").write_text(json.dumps([llava, llava]))  # ids are those of images, and may repeat
    asked = ask(tmp_path / "llava.json", loaded)
    assert ([question.id for question in asked.questions], asked.rejects) == (["0001", "0001"], ())
    (last,) = ask(tmp_path / "chat.jsonl", loaded).questions
    assert [turn.text for turn in last.prompt.turns] == ["<ImageHere>One?", "1", "Two?"]


def test_one_question_can_be_asked_about_each_image_and_document(loaded: Loaded, tmp_path: Path) -> None:
    write_pdf(tmp_path / "scans" / "two.pdf", (300, 400), (400, 300))
    write_image(tmp_path / "scans" / "a.png")
    (tmp_path / "scans" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "scans" / "notes.txt").write_text("no image")
    images = expand([str(tmp_path / "scans")])
    assert [Path(image).name for image in images] == ["a.png", "broken.jpg", "two.pdf"]
    asked = questions.from_images("How many?", images, loaded.view(1), loaded.tokenizer)
    assert [len(question.prompt.images) for question in asked.questions] == [1, 2]
    assert [(reject.id, reject.where) for reject in asked.rejects] == [(images[1], images[1])]
    assert images[1] not in asked.rejects[0].found
    outcome = predict.predict_all(loaded, asked, tmp_path / "out.jsonl", Settings(2), batch_size=2)
    assert (outcome.answers, outcome.rejects) == (2, 1)
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [images[0], images[2]]
    assert [name.rpartition("#")[2] for name in rows[1]["images"]] == ["page=1", "page=2"]
    # a page is what prepare would store of it
    page = asked.questions[1].prompt.images[0]
    line = json.dumps({"image": "two.pdf#page=1", "question": "q", "answer": "a"})
    (tmp_path / "scans" / "one.jsonl").write_text(line + "\n")
    source = Source(path=str(tmp_path / "scans" / "one.jsonl"))
    prepare([source], tmp_path / "set", base=resolve("nano"), options=PrepareOptions(hd_num=1))
    prepared = store.load(tmp_path / "set")
    stored = prepared.dataset[0]["pictures"][0]
    assert store.layout_of(stored) == store.layout_of(page)
    assert prepared.files.open(stored).tobytes() == asked.files.open(page).tobytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0, "do_sample": True}, "temperature is 0.0"),
        ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"top_k": 5}, "--top-k has no effect on greedy answers"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def test_the_same_seed_gives_the_same_samples_and_greedy_ignores_it(
    loaded: Loaded, tmp_path: Path, asked: Asked
) -> None:
    def texts(name: str, **options: Any) -> list[str]:
        predict.predict_all(loaded, asked, tmp_path / name, Settings(8, **options), batch_size=5)
        return [line["answer"] for line in read(tmp_path / name)]

    drawn = texts("a", do_sample=True, temperature=2.0, seed=1)
    assert drawn == texts("b", do_sample=True, temperature=2.0, seed=1)
    assert drawn != texts("c", do_sample=True, temperature=2.0, seed=2)
    assert texts("d", do_sample=True, top_k=1, seed=1) == texts("e")
    assert texts("f", repetition_penalty=5.0) != texts("g")


def test_the_original_template_adds_its_system_prompt(loaded: Loaded, asked: Asked) -> None:
    plain, original = (asked.questions[0].prompt.ids(loaded.tokenizer, name) for name in ("training", "original"))
    assert original[0] == plain[0] == loaded.tokenizer.bos_id
    assert original.count(loaded.tokenizer.bos_id) == 2  # one in front of each of its two parts
    assert "You are an AI assistant" in loaded.tokenizer.decode([token for token in original if token])
    assert "You are an AI assistant" not in loaded.tokenizer.decode([token for token in plain if token])
