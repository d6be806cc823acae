"""Test the report page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser as browsers
import pytest
from report_files import HOSTILE, write_evaluation, write_run

from ixtune.report import report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.skipif(bool(browsers.missing()), reason=str(browsers.missing()))

_SHOWN = "return document.querySelectorAll('.listing tbody tr:not([hidden])').length"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "<b onclick=alert(1)>run")
    write_evaluation(folder / "evaluation.json", hostile=True)
    return report([folder], tmp_path_factory.mktemp("out") / "report").out / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browsers.chromium(tmp_path_factory.mktemp("profile") / "chromium") as opened:
        yield opened


def test_the_page_makes_no_requests_and_logs_no_errors(chromium: Chrome, page: Path):
    browsers.show(chromium, page)
    assert browsers.problems(chromium) == []
    assert browsers.requests(chromium) == [page.resolve().as_uri()]
    assert chromium.title.endswith("<b onclick=alert(1)>run on nano: report")
    assert HOSTILE in chromium.execute_script("return document.querySelector('.listing').textContent")


def test_charts_and_images_are_drawn(chromium: Chrome, page: Path):
    browsers.show(chromium, page)
    assert chromium.execute_script("return document.querySelectorAll('.curve polyline').length") == 3
    assert chromium.execute_script("return document.querySelectorAll('.range circle').length") > 8
    boxes = chromium.execute_script(
        "return [...document.querySelectorAll('.curve polyline')].map(one => one.getBoundingClientRect().width)"
    )
    assert min(boxes) > 50
    sizes = chromium.execute_script("return [...document.images].map(one => one.naturalWidth)")
    assert len(sizes) == 7  # the one regression, and six gains
    assert min(sizes) > 100


def test_answers_can_be_searched_filtered_and_sorted(chromium: Chrome, page: Path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browsers.show(chromium, page)
    assert chromium.execute_script(_SHOWN) == 40
    Select(chromium.find_element(By.CSS_SELECTOR, "[data-filter='is:change']")).select_by_value("worse")
    assert chromium.execute_script(_SHOWN) == 1
    assert chromium.find_element(By.CSS_SELECTOR, ".filters output").text == "1 of 40 shown"
    chromium.find_element(By.CSS_SELECTOR, "[data-clear]").click()
    chromium.find_element(By.CSS_SELECTOR, "[type=search]").send_keys("row 17")
    assert chromium.execute_script(_SHOWN) == 1
    chromium.find_element(By.CSS_SELECTOR, "[data-clear]").click()
    chromium.find_element(By.CSS_SELECTOR, "[data-filter='min:crops']").send_keys("2")
    assert chromium.execute_script(_SHOWN) == 20
    chromium.find_element(By.CSS_SELECTOR, "[data-clear]").click()
    change = next(one for one in chromium.find_elements(By.CSS_SELECTOR, ".listing th button") if one.text == "change")
    change.click()
    assert chromium.execute_script("return document.querySelector('.listing tbody tr').dataset.change") == "worse"
    change.click()
    assert chromium.execute_script("return document.querySelector('.listing tbody tr').dataset.change") == "better"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_scrolls_sideways_and_dark_mode_follows_the_system(
    chromium: Chrome, page: Path, width: int, dark: bool
):
    browsers.show(chromium, page, width, dark=dark)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    paper = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) > 3 * 128
    assert light is not dark
