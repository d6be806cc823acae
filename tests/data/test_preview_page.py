"""Test the preview page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser as browsers
import pytest
from records import entry, shown, write_image, write_source

from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.preview import preview
from ixtune.data.sources.source import Source

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.skipif(bool(browsers.missing()), reason=str(browsers.missing()))

HOSTILE = "</script></td><img src=x onerror=\"document.title='run'\"><svg onload=alert(1)>'\"&amp;\u202e"
HOSTILE_PATH = "</script><img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tokenizer_base: Path) -> Path:
    """Return the page of a set with images, texts, rejects and hostile data, in a folder with a hostile name."""
    root = tmp_path_factory.mktemp("root")
    for name, width, height in (("a.png", 60, 40), ("tall.png", 30, 70), (HOSTILE_PATH, 50, 50)):
        write_image(root / name, width, height)
    entries: list[Any] = [shown(f"record-{number}", "a.png") for number in (1, 2, 10)]
    entries += [
        entry("tall", "<ImageHere>Read the receipt.", "Bread 2.50", image=["tall.png"]),
        entry("two", "<ImageHere><ImageHere>Which is wider?", "The first.", image=["a.png", "tall.png"]),
        entry("text", "No image at all.", "Indeed."),
        entry(HOSTILE, f"<ImageHere>{HOSTILE}", HOSTILE, image=[HOSTILE_PATH]),
        shown("gone", "none.png"),
        shown(f"gone {HOSTILE}", f"none{HOSTILE_PATH}"),
        entry("empty", "<ImageHere>What?", "", image=["a.png"]),
    ]
    folder = root / "<b onclick=alert(1)>set"
    source = Source(path=str(write_source(root, entries)), allow_image_text=True)  # <img> in a text is meant
    prepare([source], folder, base=tokenizer_base, options=PrepareOptions(hd_num=4, upscale=False), max_reject_rate=1)
    return preview(folder, tmp_path_factory.mktemp("out") / "preview").out / "index.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browsers.chromium(tmp_path_factory.mktemp("profile") / "chromium") as opened:
        yield opened


@pytest.fixture
def shown_page(chromium: Chrome, page: Path) -> Chrome:
    browsers.show(chromium, page)
    return chromium


def script(browser: Chrome, source: str, *arguments: object) -> Any:
    return browser.execute_script(f"return {source}", *arguments)


def visible(browser: Chrome, listing: str = "records") -> list[str]:
    """Return the ids of the visible rows, from top to bottom."""
    rows = f"[...document.querySelectorAll('[data-listing={listing}] .listing > tbody > tr:not([hidden])')]"
    cell = "[data-label=Record] b"
    return script(browser, f"{rows}.map((row) => row.querySelector('{cell}')?.textContent ?? '')")


def count(browser: Chrome, listing: str = "records") -> str:
    return script(browser, f"document.querySelector('[data-listing={listing}] output').textContent")


def heading(browser: Chrome, title: str, listing: str = "records") -> Any:
    path = f"//section[@data-listing='{listing}']//th[button[text()='{title}']]"
    return browser.find_element("xpath", path)


def field(browser: Chrome, rule: str, listing: str = "records") -> Any:
    return browser.find_element("css selector", f"[data-listing={listing}] [data-filter='{rule}']")


def choose(browser: Chrome, rule: str, value: str, listing: str = "records") -> None:
    from selenium.webdriver.support.select import Select

    Select(field(browser, rule, listing)).select_by_value(value)


def test_the_page_makes_no_requests_and_the_console_is_empty(shown_page: Chrome, page: Path):
    assert browsers.problems(shown_page) == []
    assert browsers.requests(shown_page) == [page.resolve().as_uri()]
    assert script(shown_page, "[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert page.stat().st_size < 1_000_000


def test_hostile_data_are_shown_as_text(shown_page: Chrome):
    shown_names = visible(shown_page)
    assert len(shown_names) == 7
    assert any(name.startswith("</script></td><img src=x") for name in shown_names)
    assert script(shown_page, "document.title") != "run"
    assert script(shown_page, "document.querySelectorAll('script').length") == 1
    assert script(shown_page, "document.querySelectorAll('[onerror], [onload], [onclick]').length") == 0
    assert script(shown_page, "document.querySelectorAll('img:not([src^=\"data:image/webp;\"])').length") == 0
    assert script(shown_page, "document.querySelector('h1').textContent") == "<b onclick=alert(1)>set"
    assert "none</script><img src=x onerror=alert(1)>.png" in script(shown_page, "document.body.textContent")


def test_the_content_security_policy_blocks_unescaped_scripts(page: Path, chromium: Chrome):
    html = page.read_text(encoding="utf-8")
    evil = "<img src=https://192.0.2.1/x onerror=\"document.title='run'\"><script>document.title = 'run'</script>"
    broken = page.with_name("broken.html")
    broken.write_text(html.replace("<h2>Records</h2>", evil), encoding="utf-8")
    from selenium.webdriver.support.ui import WebDriverWait

    browsers.show(chromium, broken)
    assert "preview" in chromium.title
    WebDriverWait(chromium, 300).until(
        lambda one: any("Content Security Policy" in problem for problem in browsers.problems(one))
    )


def test_changed_layout_options_and_reject_reasons_are_shown(shown_page: Chrome):
    told = script(shown_page, "document.body.innerText")
    assert "--no-upscale" in told
    assert "picture_missing" in told
    assert "30.0% of 10 read" in told


def test_a_column_header_sorts_ascending_then_descending(shown_page: Chrome):
    for title, numbers in (("Tokens", True), ("Record", False), ("Padding", True), ("Size", True)):
        column = heading(shown_page, title)
        column.click()
        assert column.get_attribute("aria-sort") == "ascending"
        up = visible(shown_page)
        column.click()
        assert column.get_attribute("aria-sort") == "descending"
        down = visible(shown_page)
        assert sorted(up) == sorted(down)
        if numbers:
            key = f"document.querySelectorAll('[data-listing=records] td[data-label={title}]')"
            values = script(shown_page, f"[...{key}].map((cell) => Number(cell.dataset.value))")
            assert values == sorted(values, reverse=True)
            assert len(set(values)) > 2
        else:
            assert down == up[::-1]
            assert up.index("record-2") < up.index("record-10")  # numbers within names count as numbers
    assert script(shown_page, "document.querySelectorAll('[data-listing=records] [aria-sort=none]').length") == 13


def test_filters_hide_rows_and_can_be_cleared(shown_page: Chrome):
    assert count(shown_page) == "7 of 7 shown"
    field(shown_page, "text").send_keys("RECEIPT bread")
    assert visible(shown_page) == ["tall"]
    assert count(shown_page) == "1 of 7 shown"
    shown_page.find_element("css selector", "[data-listing=records] [data-clear]").click()
    assert len(visible(shown_page)) == 7
    choose(shown_page, "is:images", "2")
    assert visible(shown_page) == ["two"]
    choose(shown_page, "is:images", "0")
    assert visible(shown_page) == ["text"]
    choose(shown_page, "is:images", "")
    tokens = script(shown_page, "Number(document.querySelector('[data-tokens]').dataset.tokens)")
    field(shown_page, "min:tokens").send_keys(str(tokens + 1))
    assert visible(shown_page)
    assert "record-1" not in visible(shown_page)
    field(shown_page, "max:tokens").send_keys("1")
    assert visible(shown_page) == []


def test_a_link_to_an_extreme_shows_its_row_even_if_filtered_out(shown_page: Chrome):
    field(shown_page, "text").send_keys("nothing like this")
    assert visible(shown_page) == []
    shown_page.find_element("link text", "most tokens").click()
    assert len(visible(shown_page)) == 7
    assert script(shown_page, "document.querySelector('.listing tr:target b').textContent") == "two"


def test_the_grid_filter_lists_all_grids(shown_page: Chrome):
    options = script(
        shown_page, "[...document.querySelector('[data-filter=\"has:grids\"]').options].map((o) => o.value)"
    )
    assert options == ["", "1x1"]


def test_rejects_can_be_filtered_and_sorted_too(shown_page: Chrome):
    assert len(visible(shown_page, "rejects")) == 3
    choose(shown_page, "is:reason", "empty_answer", "rejects")
    assert visible(shown_page, "rejects") == ["empty"]
    assert count(shown_page, "rejects") == "1 of 3 shown"
    heading(shown_page, "Found", "rejects").click()
    assert count(shown_page) == "7 of 7 shown"


def test_an_image_opens_with_its_token_counts_and_arrow_keys_navigate(shown_page: Chrome):
    from selenium.webdriver.common.keys import Keys

    choose(shown_page, "is:images", "2")
    links = shown_page.find_elements("css selector", "[data-listing=records] tr:not([hidden]) .shot a")
    assert len(links) == 2
    links[0].click()
    title = shown_page.find_element("id", "viewer-title")
    assert title.text == "two, image 1 of 2"
    stage = shown_page.find_element("css selector", ".stage")
    assert "tokens of this image" in stage.text
    assert "newlines of the global view" in stage.text
    assert "Which is wider?" in stage.text
    assert shown_page.current_url.endswith("index.html")
    stage.send_keys(Keys.ARROW_RIGHT)
    assert title.text == "two, image 2 of 2"
    stage.send_keys(Keys.ARROW_RIGHT)
    assert title.text == "two, image 1 of 2"
    stage.send_keys(Keys.ESCAPE)
    assert not shown_page.find_element("id", "viewer").is_displayed()
    assert browsers.problems(shown_page) == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (800, 900), (1200, 900), (1280, 900)])
def test_the_page_never_scrolls_sideways(chromium: Chrome, page: Path, width: int, height: int):
    browsers.show(chromium, page, width, height)
    assert script(chromium, "document.documentElement.scrollWidth") <= width
    if width == 390:
        chromium.execute_script("document.querySelector('.shot a').click()")
        assert script(chromium, "document.querySelector('.stage').scrollWidth") <= width
        assert script(chromium, "document.querySelector('dialog').getBoundingClientRect().width") <= width


def test_dark_and_light_mode_follow_the_system(chromium: Chrome, page: Path):
    def brightness(selector: str, colour: str) -> float:
        found = script(chromium, f"getComputedStyle(document.querySelector('{selector}')).{colour}")
        return sum(int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(",")) / 3

    for dark in (False, True):
        browsers.show(chromium, page, dark=dark)
        for selector in ("body", ".card", ".listing td", ".filters input", "dialog"):
            ink = brightness(selector, "color")
            assert (ink > 200) if dark else (ink < 60), selector
        for selector in ("body", ".card", ".filters input", "dialog"):
            paper = brightness(selector, "backgroundColor")
            assert (paper < 60) if dark else (paper > 240), selector


def test_the_page_prints_without_filters(chromium: Chrome, page: Path):
    browsers.show(chromium, page)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert script(chromium, "getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert script(chromium, "getComputedStyle(document.querySelector('.listing')).display") != "none"
