"""Run the SLURM scripts of docs/clusters.md with stand-ins for srun and scontrol; check its Kubernetes Job."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from text_run import lines_of, losses, prepare_texts, text_recipe

from ixtune import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
SCRIPTS = [text for text in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "#SBATCH" in text]
TASKS = {"one task": 1, "two nodes": 2}
EACH = pytest.mark.parametrize(("script", "tasks"), [*zip(SCRIPTS, TASKS.values(), strict=True)], ids=TASKS)
JOB = "4711"

# Start the tasks on this machine; exit with the highest exit code of a task, as srun does.
SRUN = """#!/bin/bash
for ((task = 0; task < TASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > tasks
code=0
for task in "${tasks[@]}"; do
  wait "$task"
  ended=$?
  ((ended > code)) && code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) echo 127.0.0.1 ;;
  requeue) echo "$2" >> requeued ;;
esac
"""


def programs(folder: Path, ixtune: str) -> None:
    """Write the stand-ins, and `ixtune` as a given command."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ixtune", f"#!/bin/bash\n{ixtune}\n")):
        (folder / "bin" / name).write_text(text, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)


def submit(folder: Path, script: str, tasks: int) -> subprocess.Popen[bytes]:
    """Start a script as the batch system would; its output is appended to `out`."""
    (folder / "job.sh").write_text(script, encoding="utf-8")
    given = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": str(tasks)}
    given |= {"SLURM_NTASKS_PER_NODE": "1", "TASKS": str(tasks), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    with (folder / "out").open("ab") as out:
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=folder, stdout=out, stderr=out, env={**os.environ, **given, "HF_HUB_OFFLINE": "1"}
        )


def requeued(folder: Path) -> list[str]:
    path = folder / "requeued"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_the_page_has_both_scripts_and_bash_can_parse_them() -> None:
    assert len(SCRIPTS) == len(TASKS)
    for script in SCRIPTS:
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
        lines = script.splitlines()
        last = max(at for at, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[:last]), "SLURM reads no directive below a command"
        (before,) = re.findall(r"--signal=USR1@(\d+)", script)
        (grace,) = re.findall(r"--grace (\d+)", script)
        assert int(grace) < int(before), "the checkpoint needs time as well"


@EACH
@pytest.mark.parametrize("code", [0, 1, 2, 138, 143])
def test_a_script_is_requeued_after_a_signal_only(tmp_path: Path, script: str, tasks: int, code: int) -> None:
    programs(tmp_path, f'echo "$RANK/$WORLD_SIZE $MASTER_ADDR $*"; exit {code}')
    assert submit(tmp_path, script, tasks).wait() == code
    assert requeued(tmp_path) == [JOB] * (code > 128)
    called = sorted((tmp_path / "out").read_text(encoding="utf-8").splitlines())
    where = ["/ "] if tasks == 1 else ["0/2 127.0.0.1", "1/2 127.0.0.1"]
    assert called == [f"{one} train mine/recipe.yaml resume=auto --grace 90" for one in where]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@EACH
def test_a_job_at_its_time_limit_is_requeued_and_finishes_equal(tmp_path: Path, script: str, tasks: int) -> None:
    """Send SIGUSR1 to every task, as SLURM does before the time limit."""
    data = prepare_texts(tmp_path / "texts")
    runs = {}
    for name in ("straight", "stopped"):
        folder = tmp_path / name
        programs(folder, f'exec {sys.executable} -m ixtune "$@"')
        text_recipe(folder / "mine", data)
        recipe = folder / "mine" / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("max_steps: 6", "max_steps: 15"), encoding="utf-8")
        runs[name] = folder / "mine" / "run"
    assert submit(tmp_path / "straight", script, tasks).wait() == 0, (tmp_path / "straight" / "out").read_text()
    assert requeued(tmp_path / "straight") == []

    folder = tmp_path / "stopped"
    job = submit(folder, script, tasks)
    deadline = time.monotonic() + 600
    while "step     1/15" not in (folder / "out").read_text(encoding="utf-8"):
        assert job.poll() is None, (folder / "out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for task in (folder / "tasks").read_text(encoding="utf-8").split():
        os.kill(int(task), signal.SIGUSR1)
    assert job.wait() == 128 + signal.SIGUSR1, (folder / "out").read_text()
    assert requeued(folder) == [JOB]
    (resume,) = re.findall(r"^resume   (ixtune train .*)", (folder / "out").read_text(encoding="utf-8"), re.MULTILINE)
    assert resume.endswith("--resume" if tasks == 1 else "(the same command as before, on every machine)")
    assert not (runs["stopped"] / "adapter").exists()

    assert submit(folder, script, tasks).wait() == 0, (folder / "out").read_text()
    assert requeued(folder) == [JOB]
    assert any(line.get("event") == "resumed" for line in lines_of(runs["stopped"] / "metrics.jsonl"))
    assert losses(runs["stopped"]) == losses(runs["straight"])
    from safetensors.torch import load_file  # imports torch, which the other tests do not need

    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in runs.values()]
    assert all(weights[0][name].equal(tensor) for name, tensor in weights[1].items())


def test_the_kubernetes_job_has_a_valid_command_and_the_documented_exit_codes() -> None:
    (text,) = re.findall(r"^```yaml\n(apiVersion:.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy allows no other"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}

    name, verb, *words = container["command"]
    assert (name, verb) == ("ixtune", "train")
    command = typer.main.get_command(cli.app).commands[verb]
    given = command.make_context(verb, list(words)).params
    assert given["recipe"].is_relative_to(container["volumeMounts"][0]["mountPath"])
    assert given["overrides"] == ["resume=auto"]
    assert given["grace"] < pod["terminationGracePeriodSeconds"], "the checkpoint needs time as well"

    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {"values": []})["values"]}
    assert actions == {128 + signal.SIGTERM: "Ignore", 2: "FailJob", 3: "FailJob"}
    assert all(set(rule) <= {"action", "onExitCodes", "onPodConditions"} for rule in rules)
    assert all(rule["onExitCodes"]["operator"] == "In" for rule in rules if "onExitCodes" in rule)
    exits = PAGE.partition("## What ends a run")[2].partition("\n## ")[0]
    assert re.search(r"^\| SIGTERM .*\| 143 \|$", exits, re.MULTILINE)
    assert "Exit code 2 means a wrong recipe or option, and 3 means more rejected records" in exits


def test_every_ixtune_command_of_the_page_parses() -> None:
    """Compare options and their values, which `tests/test_docs.py` does not."""
    found = re.findall(r"^(?:srun |  exec )?(ixtune (?:train|clean) .*)$", PAGE, re.MULTILINE)
    assert len(found) >= 4
    for line in found:
        verb, *words = shlex.split(line)[1:]
        typer.main.get_command(cli.app).commands[verb].make_context(verb, words)
