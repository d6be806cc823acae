"""Test that a run ended by a signal or an error saves a checkpoint and resumes bit for bit."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from in_process import call
from safetensors.torch import load_file
from text_run import lines_of, prepare_texts, run, text_recipe

from ixtune.platforms import ENDING_SIGNALS
from ixtune.training import callbacks, measurements
from ixtune.training.batch import PackCollator
from ixtune.training.failure import RunFailedError
from ixtune.training.monitoring import samples, scoring
from ixtune.training.processes import launch
from ixtune.training.state import disk
from ixtune.training.stopping import StopRequest, StopRequested
from ixtune.training.trainer import AdapterTrainer

CHANGES = (
    "training.gradient_accumulation=2", "training.epochs=3", "training.max_steps=null", "training.log_every=2",
    "training.evaluate_every=3", "training.scores=[exact_match]", "training.best_by=loss", "training.sample_every=3",
    "training.save_every=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a training and a validation set."""
    folder = tmp_path_factory.mktemp("texts")
    return prepare_texts(folder / "train"), prepare_texts(folder / "validation", count=4, first=50)


def recipe(folder: Path, sets: tuple[Path, Path], *changes: str) -> Any:
    return text_recipe(folder, sets[0], f"data.validation={sets[1]}", *CHANGES, *changes)


@pytest.fixture(scope="module")
def straight(sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    run(recipe(folder, sets))
    return folder / "run"


def result(folder: Path) -> dict[str, Any]:
    """Return what must be equal: weights, log lines without speeds and memory, samples, and the best step."""
    spent = {"seconds", "tokens_per_s", "computed_tokens_per_s", "memory_gib", "mfu"}
    lines = [{k: v for k, v in line.items() if k not in spent} for line in lines_of(folder / "metrics.jsonl")]
    return {
        "weights": {k: v.numpy().tobytes() for k, v in load_file(folder / "adapter/adapter_model.safetensors").items()},
        "lines": sorted((line for line in lines if "event" not in line), key=str),
        "samples": lines_of(folder / "samples.jsonl"),
        "best": (folder / "best.json").read_text(),
    }


def before_call(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, act: Callable[[], None]
) -> None:
    """Call a function right before the `number`-th call of another."""
    plain, calls = getattr(owner, name), iter(range(1, 10**6))

    def counted(*given: Any, **named: Any) -> Any:
        if next(calls) == number:
            act()
        return plain(*given, **named)

    monkeypatch.setattr(owner, name, counted)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("injected")


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("owner", "function", "call", "step"),
    [
        (callbacks, "rehearse", 1, 0),
        (AdapterTrainer, "forward_backward", 4, 2),  # the warm-up, then the second micro-batch of the second step
        (measurements, "mean_loss", 1, 3),
        (scoring, "batches", 1, 3),
        (samples, "take", 1, 3),
        (AdapterTrainer, "_write_checkpoint", 1, 3),
    ],
    ids=["warm-up", "step", "validation", "scoring", "samples", "save"],
)
def test_a_signal_at_any_point_stops_a_run_that_then_resumes_equal(
    sets: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    owner: object, function: str, call: int, step: int,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        before_call(patch, owner, function, call, send(signal.SIGTERM))
        outcome, said = run(recipe(tmp_path, sets))
    assert (outcome.adapter, outcome.stopped_by, outcome.steps) == (None, signal.SIGTERM, step), said
    assert not (tmp_path / "run" / "adapter").exists()
    finished, _ = run(recipe(tmp_path, sets, "resume=auto"))
    assert finished.stopped_by is None
    assert result(tmp_path / "run") == result(straight)


def test_a_step_is_abandoned_at_the_end_of_the_grace_period(
    sets: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the first micro-batch of the third step saves the checkpoint of the second."""
    recipe(tmp_path, sets)
    words = ["train", tmp_path / "recipe.yaml", *CHANGES, f"data.validation={sets[1]}", "--grace", "0", "--no-report"]
    with monkeypatch.context() as patch:
        before_call(patch, AdapterTrainer, "forward_backward", 6, send(signal.SIGUSR1))
        stopped = call(*words)
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.stderr
    lines = stopped.stdout.splitlines()
    assert lines[-2] == f"stopped  by SIGUSR1 at step 2; checkpoint {tmp_path / 'run' / 'checkpoint-2'}"
    assert lines[-1].startswith("resume   ixtune train")
    assert "--grace 0 --resume" in lines[-1]
    assert call(*words, "--resume").returncode == 0
    assert result(tmp_path / "run") == result(straight)


@pytest.mark.parametrize("call", [5, 6], ids=["first micro-batch", "second micro-batch"])
def test_an_error_in_a_step_saves_the_state_of_the_step_before(
    sets: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        before_call(patch, PackCollator, "make", call + 1, fail)  # the first is the warm-up's
        with pytest.raises(RunFailedError, match="injected") as failed:
            run(recipe(tmp_path, sets))
    assert (failed.value.step, failed.value.checkpoint) == (2, tmp_path / "run" / "checkpoint-2")
    run(recipe(tmp_path, sets, "resume=auto"))
    assert result(tmp_path / "run") == result(straight)


@pytest.mark.parametrize(("owner", "function"), [(measurements, "mean_loss"), (scoring, "batches"), (samples, "take")])
def test_after_a_failed_measurement_the_step_is_saved_and_measured_again(
    sets: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object,
    function: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        before_call(patch, owner, function, 1, fail)
        with pytest.raises(RunFailedError, match="injected") as failed:
            run(recipe(tmp_path, sets))
    assert (failed.value.step, failed.value.checkpoint) == (3, tmp_path / "run" / "checkpoint-3")
    run(recipe(tmp_path, sets, "resume=auto"))
    assert result(tmp_path / "run") == result(straight)


def fail_in(module: str, function: str) -> None:
    """Have the next call of a module's function fail."""
    owner = importlib.import_module(module)
    patch = pytest.MonkeyPatch()
    before_call(patch, owner, function, 1, fail)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("module", "function", "rank"),
    [
        ("ixtune.training.monitoring.validation", "make_batch", 1),
        ("ixtune.training.monitoring.scoring", "batches", 0),
        ("ixtune.training.monitoring.samples", "take", 0),
    ],
)
def test_a_failed_measurement_in_one_process_stops_both_with_a_checkpoint(
    sets: tuple[Path, Path], tmp_path: Path, module: str, function: str, rank: int
) -> None:
    changes = [*CHANGES, f"data.validation={sets[1]}", "resume=auto", "--no-report"]

    def train(folder: Path, failing: int | None = None) -> tuple[list[int], str]:
        port, log = launch._free_port(), folder / "log"
        started = [
            forked.start(
                ["train", folder / "recipe.yaml", *changes], log, forked.one_of(2, number, port),
                fail_in if number == failing else None, (module, function) if number == failing else (),
            )
            for number in range(2)
        ]  # fmt: skip
        return forked.wait(started, log), log.read_text()

    for name in ("straight", "failed"):
        text_recipe(tmp_path / name, sets[0])
    assert train(tmp_path / "straight")[0] == [0, 0]
    codes, said = train(tmp_path / "failed", rank)
    assert codes[rank] == 1, said
    assert codes[1 - rank] == launch.LOST_PEER, said
    assert "injected" in said
    assert (tmp_path / "failed" / "run" / "checkpoint-3").is_dir(), said
    assert train(tmp_path / "failed")[0] == [0, 0]
    assert result(tmp_path / "failed" / "run") == result(tmp_path / "straight" / "run")


def test_an_error_while_weights_change_saves_no_checkpoint(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.optim.AdamW.step", fail)
    with pytest.raises(RunFailedError) as failed:
        run(recipe(tmp_path, sets))
    assert failed.value.checkpoint is None
    assert "there is no checkpoint yet" in failed.value.notes


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["the system's", "torch's"],
)
def test_a_full_disk_during_a_save_is_one_clear_error(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("ixtune.training.state.progress.Progress.save", fail)
    with pytest.raises(RunFailedError, match=r"no space left on the disk: a checkpoint needs \d.* free") as failed:
        run(recipe(tmp_path, sets))
    failed.value.resume_hint("ixtune train recipe.yaml --resume")
    assert failed.value.hint.endswith("then resume with: ixtune train recipe.yaml --resume")
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_too_little_disk_for_checkpoints_is_refused_before_step_one(
    sets: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = disk.size_of(straight / "checkpoint-6")
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 2.5 * one)
    # steps 4 and 6, and 3, which is measured and may be the best; four would be kept
    with pytest.raises(disk.DiskFullError, match="no space left on the disk: 3 checkpoints of .* need"):
        run(recipe(tmp_path / "refused", sets))
    assert not (tmp_path / "refused" / "run").exists()


@pytest.mark.parametrize(
    ("changes", "held", "count"),
    [
        ((), 0, 3),  # steps 2, 4 and 6
        (("training.keep_checkpoints=1",), 0, 2),
        (("training.save_every=100",), 0, 1),
        (("training.save_every=100",), 1, 2),  # stopped between two saves, then resumed
        (("training.save_every=4", "training.evaluate_every=3", "data.validation=v"), 0, 3),  # 3 may be the best
        (("training.save_every=1", "training.keep_checkpoints=2", "data.validation=v"), 0, 4),
    ],
)
def test_the_space_for_all_checkpoints_kept_at_once_is_required(
    tmp_path: Path, changes: tuple[str, ...], held: int, count: int
) -> None:
    recipe = text_recipe(tmp_path, Path("data"), "training.keep_checkpoints=9", *changes)
    for step in range(held):
        (tmp_path / "run" / f"checkpoint-{step + 1}").mkdir(parents=True)
    plan: Any = SimpleNamespace(recipe=recipe, steps=6, trained={"projector": 1000})
    assert disk.require_space(plan, tmp_path / "run").startswith(f"disk     {count} checkpoint")


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """Return the current signal handlers, and restore them after the test."""
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_caught_during_a_run_and_handlers_are_restored(handlers: dict[int, Any]) -> None:
    told: list[str] = []
    with StopRequest(told.append) as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # SLURM sends one after the other
        assert (stop.number, len(told)) == (signal.SIGUSR1, 1)
    assert {number: signal.getsignal(number) for number in ENDING_SIGNALS} == handlers
    with pytest.raises(StopRequested) as stopped, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)  # while the model loads there is no step to lose
    assert stopped.value.exit_code == 143


def test_a_second_ctrl_c_ends_the_run_immediately(handlers: dict[int, Any]) -> None:
    with StopRequest() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_hangup_that_was_ignored_before_stays_ignored(handlers: dict[int, Any]) -> None:
    """nohup sets this."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked


def test_signals_are_not_caught_in_another_thread(handlers: dict[int, Any]) -> None:
    found: list[Any] = []

    def look() -> None:
        with StopRequest():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [handlers[signal.SIGTERM]]
