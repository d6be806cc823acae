"""Test the server through the official client; answers match `ixtune predict`."""

from __future__ import annotations

import functools
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from pdf_files import write_pdf
from records import draw_page, write_image
from served import HD_NUM, Served, ask, data_url, load_models, running

from ixtune.answering.settings import Settings
from ixtune.evaluation.predict import predict_one
from ixtune.evaluation.session import Loaded
from ixtune.serving.engine.models import Models

QUESTION = "What stands here?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return load_models(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def served(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("images")
    write_image(root / "a.png", 300, 200)
    draw_page(1).save(root / "page.png")
    write_pdf(root / "two.pdf", (200, 100), (100, 200))
    with running(models, root) as server:
        yield server


def url(served: Served, name: str) -> str:
    return data_url((served.image_root / name).read_bytes(), "application/pdf" if name.endswith("pdf") else "image/png")


def answer(served: Served, model: str, messages: Any, **more: Any) -> Any:
    more = {"max_tokens": 12} | more
    return served.client.chat.completions.create(model=model, messages=messages, **more)


def test_models_lists_the_base_and_the_adapters(served: Served) -> None:
    assert [one.id for one in served.client.models.list()] == ["plain", "rslora", "base"]
    assert served.client.models.retrieve("plain").owned_by == "ixtune"


@pytest.fixture(scope="module")
def loaded_as(models: Models) -> Callable[[str], Loaded]:
    """What `ixtune predict` loads for each model."""

    @functools.cache
    def made(name: str) -> Loaded:
        adapter = models.by_name[name].adapter
        loaded = Loaded("nano" if adapter is None else None, adapter, None)
        loaded.base_model.float()  # the adapters' dtype, in which the server has the base
        loaded.dtype = models.dtype
        return loaded

    return made


@pytest.mark.parametrize("name", ["base", "plain", "rslora"])
def test_answers_match_predict(served: Served, loaded_as: Callable[[str], Loaded], name: str) -> None:
    loaded = loaded_as(name)
    for image in ("page.png", "two.pdf"):
        expected = predict_one(
            loaded, QUESTION, [served.image_root / image], loaded.view(HD_NUM), Settings(max_new_tokens=12)
        )
        found = answer(served, name, ask(QUESTION, url(served, image)), extra_body={"hd_num": HD_NUM})
        assert found.choices[0].message.content == expected.text
        assert (found.choices[0].finish_reason, found.usage.completion_tokens) == (expected.finish, expected.tokens)


def test_a_path_below_the_image_root_names_the_same_image(served: Served) -> None:
    by_path = answer(served, "plain", ask(QUESTION, "two.pdf#page=2"))
    by_data = answer(served, "plain", ask(QUESTION, url(served, "two.pdf") + "#page=2"))
    assert by_path.choices[0].message.content == by_data.choices[0].message.content
    details = by_data.usage.prompt_tokens_details
    assert details.image_tokens == details.cached_tokens == 313 + 156  # 2 x 1 crops, found in the cache


def test_a_stream_adds_up_to_the_same_answer(served: Served) -> None:
    messages = ask(QUESTION, url(served, "page.png"))
    whole = answer(served, "plain", messages, max_tokens=30)
    chunks = list(answer(served, "plain", messages, max_tokens=30, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_supports_a_seed_and_several_choices(served: Served) -> None:
    settings: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 10}
    first, again = (answer(served, "base", ask("Say something."), **settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    other = answer(served, "base", ask("Say something."), **settings | {"seed": 8})
    assert texts != [choice.message.content for choice in other.choices]


def test_logprobs_cover_the_chosen_and_the_most_likely_tokens(served: Served) -> None:
    found = answer(served, "base", ask("Say something."), logprobs=True, top_logprobs=3, max_tokens=5)
    tokens = found.choices[0].logprobs.content
    assert len(tokens) == found.usage.completion_tokens
    for one in tokens:
        best = [other.logprob for other in one.top_logprobs]
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, best[0])  # greedy
        assert best == sorted(best, reverse=True)
        assert len(best) == 3
        assert best[0] <= 0


def test_the_answer_ends_before_the_stop_string(served: Served) -> None:
    messages, settings = ask("Say something."), {"max_tokens": 30, "temperature": 1.5, "seed": 7}
    several = answer(served, "base", messages, n=8, **settings)
    number, whole = max(enumerate(one.message.content for one in several.choices), key=lambda found: len(found[1]))
    assert len(whole) > 3
    found = answer(served, "base", messages, n=8, **settings, stop=[whole[2:]]).choices[number]
    assert found.message.content == whole[: whole.index(whole[2:])].rstrip()
    assert found.finish_reason == "stop"


SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "kind": {"enum": ["receipt", "letter"]}},
    "required": ["total", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("tokens", [2, 40])
def test_answers_follow_a_json_schema_and_match_predict(
    served: Served, loaded_as: Callable[[str], Loaded], tokens: int
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA, "strict": True}}
    messages = ask(QUESTION, url(served, "page.png"))
    found = answer(served, "plain", messages, response_format=wanted, max_tokens=tokens)
    said = json.loads(found.choices[0].message.content)
    assert set(said) == {"total", "kind"}
    stream = answer(served, "plain", messages, response_format=wanted, max_tokens=tokens, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == found.choices[0].message.content
    loaded = loaded_as("plain")
    settings = Settings(max_new_tokens=tokens, json_schema=json.dumps(SCHEMA))
    expected = predict_one(loaded, QUESTION, [served.image_root / "page.png"], loaded.view(None), settings)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (expected.text, expected.finish)


def test_response_format_json_object_gives_a_json_object(served: Served) -> None:
    found = answer(served, "base", ask("Say something."), response_format={"type": "json_object"}, n=2, temperature=1)
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in found.choices)


def test_a_conversation_may_have_a_system_prompt(served: Served) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        *ask("What is this?", url(served, "a.png")),
        {"role": "assistant", "content": "A gradient."},
        {"role": "user", "content": "Which color?"},
    ]
    assert answer(served, "rslora", messages).usage.prompt_tokens_details.image_tokens > 0


def test_errors_raise_the_client_librarys_exceptions(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        answer(served, "gpt", ask("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context") as long:
        answer(served, "base", ask("Hi"), max_tokens=5000)
    assert long.value.code == "context_length_exceeded"


def get(served: Served, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(served.url + path) as response:
        return response.status, response.read().decode()


def test_layout_returns_the_crop_grid_and_token_counts(served: Served) -> None:
    body = json.dumps({"image": url(served, "two.pdf"), "hd_num": 9, "preview": 64}).encode()
    asked = urllib.request.Request(f"{served.url}/v1/layout", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as response:
        found = json.load(response)
    assert [(page["page"], page["rows"], page["cols"]) for page in found["pages"]] == [(1, 2, 4), (2, 4, 2)]
    assert found["tokens"] == sum(page["tokens"] for page in found["pages"])
    assert all(page["preview"].startswith("data:image/jpeg;base64,") for page in found["pages"])


def test_health_metrics_and_page(served: Served) -> None:
    answer(served, "base", ask("Hi"))
    assert json.loads(get(served, "/healthz")[1]) == {"status": "ok"}
    text = get(served, "/metrics")[1]
    assert 'ixtune_completion_tokens_total{model="base"}' in text
    assert "ixtune_prefixes_reused" in text
    assert "<html" in get(served, "/")[1]
    assert get(served, "/page/page.css")[0] == 200
