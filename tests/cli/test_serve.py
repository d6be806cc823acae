"""Test that `ixtune serve` reports wrong options before it loads anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from in_process import call


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "no model is named"),
        (("--base", "nano", "--host", "0.0.0.0"), "anyone on the network"),
        (("--base", "nano", "--model", "x"), "--model cannot be combined with --adapter or --base"),
        (("--base", "nano", "--quantize", "int8"), "quantize is 'int8'"),
        (("--base", "nano", "--api-key-file", "none.txt"), "the key cannot be read"),
        (("--base", "nano", "--api-key-file", "short.txt"), "shorter than 16"),
        (("--base", "nano", "--image-root", "none"), "no such folder"),
        (("--adapter", "none"), "there is no adapter"),
        (("--base", "nowhere"), "no such base"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("secret")
    ended = call("serve", *options)
    assert ended.returncode != 0
    assert expected in ended.stderr
    assert "hint:" in ended.stderr


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = call("serve", "--base", "nano", "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
    assert "--port" in ended.stderr
