"""Test the two live lines on a terminal, and the plain lines elsewhere."""

from __future__ import annotations

import io
from collections import deque

import pytest
from rich.console import Console

from ixtune.training.monitoring import view as views
from ixtune.training.monitoring.view import LiveView, TrainingView, clock, curve, view_on

LINE = {"step": 10, "loss": 0.5, "learning_rate": 1e-4, "tokens_per_s": 1234.5, "memory_gib": 2.25, "mfu": None}


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a list, so that a test can set the time."""
    now = [100.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: now[0])
    return now


def _terminal(width: int = 100) -> tuple[LiveView, io.StringIO]:
    file = io.StringIO()
    view = view_on(Console(file=file, force_terminal=True, width=width, legacy_windows=False))
    assert isinstance(view, LiveView)
    return view, file


def _drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=view.console.width)
    with console.capture() as captured:
        console.print(view._draw())
    return captured.get()


def test_a_pipe_gets_one_plain_line_per_measurement(now: list[float]) -> None:
    file = io.StringIO()
    view = view_on(Console(file=file, width=400))
    assert type(view) is TrainingView
    with view:
        view.begin(8, 20)
        view.advance(10)
        now[0] += 4  # two steps took four seconds
        view.show(LINE)
        view.show({"step": 10, "validation_loss": 0.75})
    assert file.getvalue().splitlines() == [
        "step    10/20  loss 0.5000  lr 1.0e-04  1,234 tokens/s  2.25 GiB  0:20 left",
        "step    10/20  validation loss 0.7500",
    ]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_log_file_stays_plain_where_colors_are_forced(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    console = Console(file=io.StringIO())
    assert console.is_terminal
    assert type(view_on(console)) is TrainingView


def test_a_notebook_gets_plain_lines() -> None:
    assert type(view_on(Console(file=io.StringIO(), force_jupyter=True))) is TrainingView


def test_a_terminal_shows_the_progress_of_the_run(now: list[float]) -> None:
    view, _ = _terminal()
    with view:
        view.begin(0, 20)
        assert "waiting for the first step" in _drawn(view)
        view.advance(10.5)
        now[0] += 21
        for loss in (0.9, 0.7, 0.5):
            view.show({**LINE, "loss": loss})
        view.show({"step": 10, "validation_loss": 0.7})
        view.show({"step": 10, "validation_loss": 0.8})
        drawn = _drawn(view)
    assert "step 10/20" in drawn
    assert "52%" in drawn
    assert "0:21 elapsed, 0:19 left" in drawn
    assert "loss 0.5000 █▄▁  validation 0.8000 (best 0.7000)  lr 1.0e-04  1,234 tokens/s  2.25 GiB" in drawn
    assert "MFU" not in drawn
    view.show({**LINE, "mfu": 0.41})
    assert "MFU 41%" in _drawn(view)


@pytest.mark.parametrize(
    ("name", "shown"), [("anls", "ANLS 0.2500 (best 0.5000)"), ("cer", "CER 0.7500 (best 0.2500)")]
)
def test_the_best_by_score_is_plotted_and_all_scores_are_printed_above(name: str, shown: str) -> None:
    file = io.StringIO()
    view = view_on(Console(file=file, force_terminal=True, width=120, legacy_windows=False), name)
    with view:
        view.begin(0, 20)
        view.show(LINE)
        for anls, cer in ((0.0, 0.25), (0.5, 1.0), (0.25, 0.75)):
            view.show({"step": 9, "validation_loss": 0.7, "validation_anls": anls, "validation_cer": cer})
        assert shown in _drawn(view)
    assert "step     9/20  validation loss 0.7000  ANLS 0.5000  CER 1.0000" in file.getvalue()


def test_lines_never_wrap_on_a_narrow_terminal() -> None:
    """Wrapped lines would remain on screen at the next refresh."""
    view, _ = _terminal(width=40)
    view.begin(0, 1000000)
    view.show({**LINE, "loss": 12.5})
    view.show({"step": 1, "validation_loss": 0.7})
    view.warn("stopping after this step, with a checkpoint (Ctrl-C again: stop at once, without a checkpoint)")
    lines = _drawn(view).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 40 for line in lines)
    view.__exit__(None, None, None)


def test_the_current_activity_replaces_the_numbers() -> None:
    view, _ = _terminal()
    with view:
        view.begin(0, 10)
        view.show(LINE)
        with view.busy("measuring the validation loss"):
            assert "measuring the validation loss" in _drawn(view)
        assert "loss 0.5000" in _drawn(view)


def test_printed_lines_keep_brackets_and_an_error_restores_the_cursor() -> None:
    view, file = _terminal()

    def fail() -> None:
        with view:
            view.begin(0, 10)
            view.say("sample   '[bold]what?[/bold]' -> 'x'")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "'[bold]what?[/bold]' -> 'x'" in file.getvalue()
    assert "\x1b[?25h" in file.getvalue()


def test_a_curve_uses_blocks_from_lowest_to_highest() -> None:
    assert curve(deque([1.0])) == ""
    assert curve(deque([1.0, 1.0])) == "▁▁"
    assert curve(deque(range(7, -1, -1))) == "█▇▆▅▄▃▂▁"


def test_a_clock_shows_hours_only_from_one_hour_on() -> None:
    assert (clock(59.9), clock(61), clock(3600 * 30 + 5)) == ("0:59", "1:01", "30:00:05")
