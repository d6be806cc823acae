"""Test `ixtune doctor`: its findings on this machine, and that it detects broken parts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from main_job import command, environment, ixtune

from ixtune import doctor
from ixtune.recipe.shipped_recipes import shipped_by_name

NAMES = (
    """python ixtune torch gpu bitsandbytes libraries memory disk hub
released base embedded base""".replace("\n", " ")
    .replace(" base", "_base")
    .split()
)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = ixtune("doctor", "--gpu-gib", "24", "--json")
    assert done.returncode == 0, done.stdout
    return dict(json.loads(done.stdout))


def test_every_check_runs_once_and_none_is_broken_here(told: dict[str, Any]):
    assert [check["name"].replace(" ", "_") for check in told["checks"]] == NAMES
    assert [check for check in told["checks"] if check["state"] == "broken"] == []
    assert all(check["mend"] for check in told["checks"] if check["state"] == "note")


def test_shipped_recipes_are_planned_and_large_ones_do_not_fit(told: dict[str, Any]):
    by_name = {row["recipe"]: row for row in told["recipes"]}
    assert set(by_name) == set(shipped_by_name())
    assert by_name["qlora-24gb"]["fits"] is True
    assert by_name["lora-80gb"]["fits"] is False
    assert by_name["demo"]["fits"] is True
    gib = 2**30
    assert by_name["projector-only"]["least_bytes"] < by_name["qlora-24gb"]["least_bytes"] < 16 * gib
    assert 24 * gib < by_name["lora-80gb"]["least_bytes"]
    assert by_name["qlora-24gb"]["needed_bytes"] <= 24 * gib


def test_the_least_memory_is_the_smallest_that_fits():
    for row in doctor.trainable(24):
        if row.mix is not None:
            gib = row.least_bytes / 2**30
            assert next(one for one in doctor.trainable(gib + 0.001) if one.recipe == row.recipe).fits
            assert not next(one for one in doctor.trainable(gib - 0.01) if one.recipe == row.recipe).fits
            break


def test_the_default_output_is_a_table_and_a_verdict():
    done = ixtune("doctor")
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
    assert "qlora-24gb" in done.stdout
    assert "not checked: HF_HUB_OFFLINE is set" in done.stdout
    assert "verdict  this machine is ready; " in done.stdout
    assert done.stderr == ""


def test_a_broken_library_is_reported_with_a_hint_and_exit_code_1(tmp_path: Path):
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError('libcudart.so.13: no such file\\nmore')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(doctor.__file__).parents[1])])
    done = subprocess.run(
        command("doctor"), env=environment() | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("bitsandbytes")]
    assert "BROKEN" in line
    assert "libcudart.so.13: no such file; reinstall ixtune" in line
    assert "verdict  broken: bitsandbytes" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("version", [(3, 10), (3, 15)])
def test_an_unsupported_python_version_is_reported_as_broken(version: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0))
    assert doctor._python().state == "broken"


def test_a_package_of_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda name: ["pyyaml>=99", "no-such-package", 'ruff>99; extra == "dev"']
    )
    found = doctor._package()
    assert found.state == "broken"
    assert "pyyaml" in found.found
    assert "no-such-package is missing" in found.found
    assert "ruff" not in found.found


def test_a_full_disk_and_low_memory_are_noted(monkeypatch: pytest.MonkeyPatch):
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    monkeypatch.setattr(doctor.platforms, "available_bytes", lambda: 2**30)
    assert (doctor._disk().state, doctor._memory().state) == ("note", "note")
    assert "set HF_HOME to a folder on a larger disk" in doctor._released_base().hint


@pytest.fixture
def silent() -> Any:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hanging_hub_times_out(silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_HUB_TIMEOUT_S", 0.5)
    assert doctor._reach(silent)  # without a timeout it would wait for the server, which never answers


def test_a_hub_that_refuses_counts_as_reached_and_a_dead_one_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 12)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        assert doctor._reach(f"http://127.0.0.1:{server.getsockname()[1]}") is None
        thread.join()
        port = server.getsockname()[1]
    assert "refused" in str(doctor._reach(f"http://127.0.0.1:{port}"))


def test_offline_no_request_is_made(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    def fail(address: str) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(doctor, "_reach", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert doctor._hub().state == "note"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "_reach", lambda address: "no route")
    assert "no route" in doctor._hub().found
