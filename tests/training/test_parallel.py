"""Test that a run in N processes equals one process with N times the accumulation."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from engine import mixed_set
from main_job import command, environment, losses, write_recipe
from rich.console import Console
from safetensors.torch import load_file
from text_run import prepare_texts

from ixtune import __version__
from ixtune.errors import UsageError
from ixtune.recipe import recipe as recipes
from ixtune.training.processes import launch, parallel

# Three packs: two of an image each, and one of text. An epoch does not divide by two, and with this seed the text
# stands alone in the last step of the first and third, beside an image in the second.
SETTINGS = (
    "training.seed=3",
    "adapter.rank=16",
    "adapter.dropout=0",
    "training.pack_tokens=420",
    "training.epochs=3",
    "training.schedule=constant",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return a run of two processes from the command line, and its output."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(folder / "recipe.yaml", data, folder / "run")
    return folder / "run", run("train", recipe, *SETTINGS, "--processes", "2")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done


def weights_differ_by(one: Path, other: Path) -> float:
    """Return the largest difference of any trained tensor, relative to its norm."""
    found, wanted = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert found.keys() == wanted.keys()
    return max(float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in wanted.items())


def test_two_processes_equal_one_with_double_accumulation(
    two: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    """Use epochs that do not divide evenly, a step with images in one process only, and a step without images."""
    from ixtune.training.run import train

    path = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    train(recipes.load(path, (*SETTINGS, "training.gradient_accumulation=2")), Console(file=io.StringIO()))
    wanted = losses(tmp_path / "run")
    assert len(wanted) == 6
    assert losses(two[0]) == [
        (step, pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-6)) for step, loss, norm in wanted
    ]
    assert weights_differ_by(two[0], tmp_path / "run") < 1e-6


def test_only_the_first_process_writes_and_prints(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = two
    assert done.stderr == ""
    assert done.stdout.count("done     6 steps") == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    info = json.loads((folder / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    assert lines[-1]["tokens"] == info["tokens"] == 3 * 1096, "the tokens of both"


@pytest.mark.slow
def test_two_processes_equal_one_if_packs_share_prefixes(tmp_path: Path) -> None:
    """Split a group over two packs, one in each process."""
    from ixtune.training.run import train

    data = prepare_texts(tmp_path / "data", system="Add both numbers. " * 16)
    settings = (*SETTINGS, "training.pack_tokens=500", "training.max_steps=3")
    one = write_recipe(tmp_path / "one.yaml", data, tmp_path / "one")
    train(recipes.load(one, (*settings, "training.gradient_accumulation=2")), Console(file=io.StringIO()))
    run("train", write_recipe(tmp_path / "two.yaml", data, tmp_path / "two"), *settings, "--processes", "2")
    wanted, found = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")
    )
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    for count in ("tokens", "computed_tokens", "supervised_tokens"):
        assert found[count] == wanted[count]
    assert wanted["computed_tokens"] < wanted["tokens"]
    assert weights_differ_by(tmp_path / "two", tmp_path / "one") < 1e-6


@pytest.mark.slow
def test_two_processes_share_the_answers_and_measure_like_one(data: Path, tmp_path: Path) -> None:
    """Each process answers every other batch; sums and best step equal those of one process."""
    from ixtune.training.run import train

    scored = (
        *SETTINGS, f"data.validation={data}", "training.evaluate_every=3", "training.scores=[exact_match, anls, cer]",
        "training.best_by=cer",
    )  # fmt: skip
    one = write_recipe(tmp_path / "one.yaml", data, tmp_path / "one")
    train(recipes.load(one, (*scored, "training.gradient_accumulation=2")), Console(file=io.StringIO()))
    run("train", write_recipe(tmp_path / "two.yaml", data, tmp_path / "two"), *scored, "--processes", "2")
    assert (tmp_path / "two" / "report.html").is_file(), "written by the first process, after the others ended"
    wanted, found = (
        [
            {key: value for key, value in json.loads(line).items() if key == "step" or key.startswith("validation_")}
            for line in (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            if "validation_loss" in line
        ]
        for name in ("one", "two")
    )
    assert [line["step"] for line in wanted] == [3, 6]
    assert all(line["validation_cer"] > 0 for line in wanted)
    assert found == [pytest.approx(line, rel=1e-5) for line in wanted]
    best = [json.loads((tmp_path / name / "best.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert best[0]["step"] == best[1]["step"]


COLLECTIVES = """
import torch
from ixtune.errors import UsageError
from ixtune.training.processes import launch, parallel
parallel.join()
rank = launch.rank()
parameters = [torch.nn.Parameter(torch.full((2,), float(rank))) for _ in range(3)]
parallel.start_equal(parameters)
assert all(float(p.sum()) == 0 for p in parameters)
parameters[0].grad = torch.full((2,), 1.0 + rank)
if rank:
    parameters[1].grad = torch.full((2,), 4.0)
parallel.average_gradients(parameters)
assert parameters[0].grad.tolist() == [1.5, 1.5]
assert parameters[1].grad.tolist() == [2.0, 2.0]
assert parameters[2].grad is None
assert parallel.total(rank, 1) == (1, 2)
assert parallel.any_of(rank == 1) and not parallel.any_of(False)
assert list(parallel.share(range(5))) == ([0, 2, 4], [1, 3])[rank]
assert parallel.from_first(lambda: rank) == 0
assert parallel.gather(bytes([rank])) == ([b"\\0", b"\\1"] if rank == 0 else [])
parallel.barrier()
try:
    parallel.from_first(lambda: 1 / 0)
except ZeroDivisionError:
    assert rank == 0
except launch.LostPeerError:
    assert rank == 1
else:
    raise AssertionError
if rank:
    with parallel.lost_peers():
        raise UsageError("what", hint="how")
with parallel.lost_peers():
    parallel.barrier()
    parallel.barrier()
"""


def test_the_system_gives_the_port_of_a_run_to_nobody_else() -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(given.read_text(encoding="utf-8").split()[0]) if given.exists() else 0
    if lowest < 32_000:
        pytest.skip("this system gives other ports than Linux does by default")
    assert all(launch._free_port() < lowest for _ in range(20))


def test_collective_operations_of_processes_work() -> None:
    port = str(launch._free_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COLLECTIVES],
            env={**environment(), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [launch.LOST_PEER, UsageError.exit_code], said
    assert "LostPeerError: another process of this run has failed" in said[0]


def test_in_a_single_process_collective_operations_do_nothing() -> None:
    assert parallel.is_first()
    assert parallel.total(2.5, 1) == (2.5, 1)
    assert parallel.any_of(True)
    assert parallel.from_first(lambda: "mine") == "mine"
    assert parallel.share([1, 2, 3]) == [1, 2, 3]


def test_after_the_others_end_the_first_process_does_all_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is the evaluation at the end of a distributed run, when its variables are still set."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.total(3.0) == (3.0,)
    assert parallel.gather(b"state") == [b"state"]


def test_only_the_first_process_prints_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.launch(2, ["--version"]) == 0
    assert capfd.readouterr() == (f"ixtune {__version__}\n", "")


def test_an_error_is_printed_once_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.launch(3, ["recipes", "no-such-verb"]) == 2
    assert capfd.readouterr().err.count("no-such-verb") == 1


def test_a_signal_that_comes_before_the_first_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = launch._start

    def start(number: int, *given: Any) -> subprocess.Popen[bytes]:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(number, *given)

    monkeypatch.setattr(launch, "_start", start)
    assert launch.launch(2, ["--version"]) == 128 + signal.SIGTERM


def test_a_worker_process_cannot_launch_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--processes 4 inside a run of 2 processes"):
        launch.launch(4, ["--version"])


@pytest.mark.parametrize(
    ("name", "variable"), [("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_sharding_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"enables {name}") as caught:
        parallel.join()
    assert "--processes N" in caught.value.hint


def test_a_worker_ends_with_the_process_that_launched_it() -> None:
    code = "import time; from ixtune.training.processes.launch import follow_parent as follow; "
    code += "follow(); print(flush=True); time.sleep(600)"
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environment(), "IXTUNE_PARENT_PIPE": str(reading)},
        pass_fds=(reading,),
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    assert worker.poll() is None
    os.close(writing)  # as the kernel does when the parent dies
    assert worker.wait(timeout=300) == launch.LOST_PEER
    worker.stdout.close()
    os.close(reading)


@pytest.mark.slow
def test_accelerate_launches_the_same_run(
    two: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    """--multi_gpu starts the processes even without GPUs; --cpu would need MPI for a second one."""
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "ixtune"]
    done = subprocess.run(
        [*launcher, "train", str(recipe), *SETTINGS], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done     6 steps") == 1
    assert losses(tmp_path / "run") == losses(two[0])
    assert weights_differ_by(tmp_path / "run", two[0]) == 0


def start(recipe: Path, *changes: str) -> subprocess.Popen[str]:
    """Start a long run of two processes; return after its first step."""
    started = subprocess.Popen(
        command("train", recipe, *SETTINGS, *changes, "--processes", "2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("step"):
            return started
    raise AssertionError(started.communicate()[1])


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_resumes_bit_for_bit(
    two: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    """On Ctrl-C both stop in the same step and save one checkpoint; dropout makes each random state matter."""
    dropped = "adapter.dropout=0.1"
    straight = write_recipe(tmp_path / "straight.yaml", data, tmp_path / "straight")
    run("train", straight, *SETTINGS, dropped, "training.epochs=20", "--processes", "2")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    rarely = "training.save_every=1000"
    started = start(recipe, dropped, "training.epochs=20", rarely)
    started.send_signal(signal.SIGINT)
    said, complaints = started.communicate(timeout=120)
    assert started.returncode == 130, complaints
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert 0 < int(saved.name.removeprefix("checkpoint-")) < 40
    (resume,) = re.findall(r"^resume   (.*)", said, re.MULTILINE)
    assert resume.endswith("--resume --processes 2")
    run("train", recipe, *SETTINGS, dropped, "training.epochs=20", rarely, "--resume", "--processes", "2")
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert weights_differ_by(tmp_path / "run", tmp_path / "straight") == 0


@pytest.mark.slow
def test_a_diverging_run_of_two_processes_reports_it_once(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    arguments = ("train", recipe, *SETTINGS, "training.learning_rate=1e30", "--processes", "2")
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1
    assert done.stderr.count("training diverged") == 1
    assert "Traceback" not in done.stderr
    assert "terminate called" not in done.stderr
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_worker_ends_the_run(data: Path, tmp_path: Path, victim: int) -> None:
    started = start(write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run"), "training.epochs=2000")
    workers = children_of(started.pid)
    assert len(workers) == 2
    os.kill(workers[victim], signal.SIGKILL)
    began = time.monotonic()
    started.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert started.returncode != 0
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_no_worker_remains_when_the_launcher_is_killed(data: Path, tmp_path: Path) -> None:
    started = start(write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run"), "training.epochs=2000")
    workers = children_of(started.pid)
    started.kill()
    started.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children_of(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8")
    return sorted(map(int, listed.split()))
