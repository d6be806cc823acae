"""Test the server's page in a real browser: ask about an image, watch the answers, copy the request."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser as browsers
import pytest
from pdf_files import write_pdf
from records import write_image
from served import HD_NUM, Served, load_models, running

from ixtune.layout import plan
from ixtune.serving.engine.models import Models

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.skipif(bool(browsers.missing()), reason=str(browsers.missing()))

HOSTILE = "<img src=x onerror=alert(1)> $(rm -rf x) `id` \\n \"quoted\" 'single'"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": [HOSTILE]}, "lines": {"type": "array", "minItems": 2, "maxItems": 2}},
    "required": ["name", "lines"],
    "additionalProperties": False,
}
SCHEMA["properties"]["lines"]["items"] = {  # type: ignore[index]
    "type": "object",
    "properties": {"count": {"enum": [3]}},
    "required": ["count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return load_models(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def served(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("images")
    write_image(root / "it's a.png", 300, 200)
    write_pdf(root / "three.pdf", (200, 100), (100, 200), (100, 100))
    with running(models, root) as server:
        yield server


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[Chrome]:
    with browsers.chromium(tmp_path_factory.mktemp("profile") / "chromium") as opened:
        permissions = {"origin": served.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        opened.execute_cdp_cmd("Browser.grantPermissions", permissions)
        yield opened


@pytest.fixture
def page(chromium: Chrome, served: Served) -> Chrome:
    show(chromium, served)
    return chromium


def show(chromium: Chrome, served: Served, **how: Any) -> None:
    browsers.show(chromium, served.url + "/", **how)
    until(chromium, "return !document.querySelector('main').hidden")


def until(chromium: Chrome, script: str, *values: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(chromium, 300, 0.05).until(lambda one: one.execute_script(script, *values))


def find(chromium: Chrome, selector: str) -> WebElement:
    return chromium.find_element("css selector", selector)


def choose(chromium: Chrome, path: Path) -> None:
    before = len(chromium.find_elements("css selector", ".source"))
    find(chromium, "#files").send_keys(str(path))
    drawn = "return document.querySelectorAll('.source:not([aria-busy]) .view').length > arguments[0]"
    until(chromium, drawn, before)


def tokens(width: int, height: int, hd_num: int = HD_NUM) -> int:
    return plan(width, height, hd_num).tokens


def ask(chromium: Chrome, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    find(chromium, "#question").send_keys(text, Keys.ENTER)


def hold_to(chromium: Chrome, schema: dict[str, Any]) -> None:
    chromium.execute_script(
        "const form = document.querySelector('#form'); form.value = 'json_schema';"
        "form.dispatchEvent(new Event('change')); document.querySelector('#schema').value = arguments[0]",
        json.dumps(schema),
    )


def ended(chromium: Chrome) -> list[str]:
    """Wait for the answers to the latest question; return their texts."""
    until(chromium, "return document.querySelector('.exchange') && !document.querySelector('.answer[aria-busy]')")
    columns = find(chromium, ".exchange").find_elements("css selector", ".answer")
    return [one.text for one in columns]


def copied(chromium: Chrome, title: str) -> str:
    button = next(one for one in chromium.find_elements("css selector", ".tools button") if one.text == title)
    # the title is back after a moment, which may be sooner than a busy machine looks
    chromium.execute_script(
        "const made = arguments[0]; delete made.dataset.copied; new MutationObserver(() => {"
        "if (made.textContent === 'Copied') made.dataset.copied = 'yes' }).observe(made, { childList: true })",
        button,
    )
    button.click()
    until(chromium, "return arguments[0].dataset.copied === 'yes'", button)
    return str(chromium.execute_async_script("navigator.clipboard.readText().then(arguments[0])"))


def test_base_and_adapter_answer_side_by_side_and_the_shown_request_runs(page: Chrome, served: Served) -> None:
    choose(page, served.image_root / "it's a.png")
    assert find(page, "#bill").text == f"{tokens(300, 200)} image tokens"
    assert find(page, ".grid").get_attribute("aria-label") == "it's a.png: 1 crop, 1 × 1"
    until(page, "return document.querySelector('.grid image').getBBox().width > 100")
    question = f"Hello? {HOSTILE}"
    page.execute_script("document.querySelector('#max_tokens').value = 12")
    ask(page, question)
    answers = ended(page)
    names = [one.text for one in page.find_elements("css selector", ".exchange h3")]
    assert names == ["plain", "base"]
    assert find(page, ".exchange h2").text == question
    assert " out · first token after " in find(page, ".figures").text
    assert browsers.problems(page) == []
    assert {address.startswith(served.url) for address in browsers.requests(page)} == {True}
    # the copied commands ask the same
    command = copied(page, "curl")
    done = subprocess.run(
        ["bash", "-c", command], cwd=served.image_root, capture_output=True, text=True, check=True, timeout=600
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == answers[0]
    program = copied(page, "Python")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(served.image_root)
        exec(compile(program, "copied", "exec"), {"print": said.append})
    assert said == answers[:1]
    assert copied(page, "Copy answer") == answers[0]


def test_images_can_be_pasted_dropped_and_removed(page: Chrome, served: Served) -> None:
    content = base64.b64encode((served.image_root / "it's a.png").read_bytes()).decode()
    give = """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const [given, how] = [new DataTransfer(), { bubbles: true, cancelable: true }];
        given.items.add(new File([bytes], arguments[1], { type: "image/png" }));
        const [pasted, dropped] = [{ ...how, clipboardData: given }, { ...how, dataTransfer: given }];
        document.body.dispatchEvent(%s);
    """
    page.execute_script(give % "new ClipboardEvent('paste', pasted)", content, "0.png")
    page.execute_script(give % "new DragEvent('drop', dropped)", content, "1.png")
    until(page, "return document.querySelector('#bill').textContent === arguments[0]", "626 image tokens in 2 files")
    assert sorted(one.text for one in page.find_elements("css selector", ".source .name")) == ["0.png", "1.png"]
    find(page, ".source button").click()
    until(page, "return document.querySelector('#bill').textContent === arguments[0]", "313 image tokens")


def test_document_pages_can_be_selected_and_show_their_token_counts(page: Chrome, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    choose(page, served.image_root / "three.pdf")
    assert [one.text for one in page.find_elements("css selector", ".pages button")] == ["1", "2", "3"]
    assert find(page, "#bill").text == f"{tokens(200, 100)} image tokens"
    find(page, ".pages button:nth-child(3)").click()
    cost = "return document.querySelector('#bill').textContent === arguments[0]"
    until(page, cost, f"{tokens(200, 100) + tokens(100, 100)} image tokens")
    find(page, "#hd_num").send_keys(Keys.CONTROL, "a", Keys.NULL, "8", Keys.TAB)
    until(page, cost, f"{tokens(200, 100, 8) + tokens(100, 100, 8):,} image tokens")
    page.execute_script("document.querySelector('#max_tokens').value = 2")
    ask(page, "Hello?")
    ended(page)
    assert "three.pdf, page 1, 3 · hd_num 8" in find(page, ".exchange .quiet").text
    assert '"hd_num": 8' in copied(page, "curl")


def test_json_answers_become_tables_and_html_is_escaped(page: Chrome) -> None:
    hold_to(page, SCHEMA)
    find(page, "#models input[value=base]").click()
    ask(page, "Read it.")
    ended(page)
    table = find(page, ".exchange table.json")
    assert [one.text for one in table.find_elements("css selector", "td td")] == ["3", "3"]
    assert HOSTILE in table.text
    find(page, ".answer > button").click()
    assert json.loads(find(page, ".answer pre").text)["lines"] == [{"count": 3}, {"count": 3}]
    assert page.find_elements("css selector", ".answer img") == []
    assert browsers.problems(page) == []


def test_an_answer_can_be_stopped_and_history_stays_in_the_browser(page: Chrome, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    page.execute_script("localStorage.clear()")
    show(page, served)
    hold_to(page, {"type": "array", "minItems": 1000, "items": {"enum": [1]}})
    find(page, "#question").send_keys("Say", Keys.SHIFT, Keys.ENTER)
    find(page, "#question").send_keys(Keys.NULL, "something.")
    assert find(page, "#question").get_attribute("value") == "Say\nsomething."
    page.execute_script("document.querySelector('#max_tokens').value = 3000")
    ask(page, "")
    until(page, "return document.querySelector('.answer').textContent.length > 3")
    assert find(page, "#stop").is_enabled()
    find(page, "body").send_keys(Keys.ESCAPE)
    ended(page)
    assert find(page, ".figures").text.startswith("stopped")
    show(page, served)
    find(page, ".entry summary").click()
    until(page, "return document.querySelectorAll('.entry .column').length === 2")
    assert "Say\nsomething." in find(page, ".entry .asked").get_attribute("textContent")
    find(page, ".entry > button").click()
    assert find(page, "#question").get_attribute("value") == "Say\nsomething."
    find(page, "#clear").click()
    assert not find(page, "#history").is_displayed()
    assert page.execute_script("return localStorage.getItem('ixtune.history')") == "[]"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_a_phone_and_has_contrast(chromium: Chrome, served: Served, dark: bool) -> None:
    show(chromium, served, width=360, height=740, dark=dark)
    choose(chromium, served.image_root / "it's a.png")
    chromium.execute_script("document.querySelector('#max_tokens').value = 8")
    ask(chromium, "What " + 60 * "w" + "?")
    ended(chromium)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 360
    fields = "[...document.querySelectorAll('button, input:not([type=file]), textarea, select')]"
    wide = f"return {fields}.some((one) => one.offsetParent && one.getBoundingClientRect().right > 360)"
    assert not chromium.execute_script(wide)
    unnamed = "return [...document.querySelectorAll('input, select, textarea')].some((one) => !one.labels.length)"
    assert not chromium.execute_script(unnamed)
    paper = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == dark


def test_errors_are_readable_and_the_key_is_requested_only_if_required(
    chromium: Chrome, served: Served, models: Models, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    show(chromium, served)
    assert not find(chromium, "#unlock").is_displayed()
    find(chromium, "#files").send_keys(str(broken))
    until(chromium, "return document.querySelector('#problem').textContent.startsWith('broken.png: ')")
    assert chromium.find_elements("css selector", ".source") == []
    chromium.execute_script("document.querySelector('#max_tokens').value = 5000")
    ask(chromium, "Hi")
    assert "this server accepts 4,096 tokens" in ended(chromium)[0]
    with running(models, served.image_root, api_key="a long random text") as locked:
        browsers.show(chromium, locked.url + "/")
        until(chromium, "return !document.querySelector('#unlock').hidden")
        find(chromium, "#key").send_keys("another text\n")
        until(chromium, "return document.querySelector('#problem').textContent.includes('missing or wrong')")
        find(chromium, "#key").clear()
        find(chromium, "#key").send_keys("a long random text\n")
        until(chromium, "return !document.querySelector('main').hidden")
        assert not find(chromium, "#unlock").is_displayed()
        chromium.execute_script("document.querySelector('#max_tokens').value = 4")
        ask(chromium, "Hi")
        ended(chromium)
        assert " out · first token after " in find(chromium, ".figures").text
        assert "a long random text" not in chromium.execute_script("return JSON.stringify(localStorage)")
