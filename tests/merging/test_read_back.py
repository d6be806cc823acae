"""Test that hashes read back in a thread equal those of the file, for any block size."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from open_files import open_files_below

from ixtune.checkpoint.safetensors_file import BLOCK_BYTES
from ixtune.merging.read_back import ReadBack

CONTENT = os.urandom(3 * BLOCK_BYTES + 1234)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "shard"
    path.write_bytes(CONTENT)
    return path


@given(stops=st.lists(st.integers(0, len(CONTENT)), max_size=4))
def test_hashes_match_the_whole_file(file: Path, stops: list[int]) -> None:
    told: list[int] = []
    reading = ReadBack(told.append)
    for stop in sorted(stops):
        reading.until("shard", file, stop)
    found = reading.hashes("shard", file)
    reading.close()
    assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert found.fast == xxhash.xxh3_128(CONTENT).hexdigest()
    assert sum(told) == len(CONTENT)


def test_a_file_can_be_renamed_while_it_is_read(tmp_path: Path) -> None:
    partial, final = tmp_path / "shard.partial", tmp_path / "shard"
    partial.write_bytes(CONTENT)
    reading = ReadBack(lambda nbytes: None)
    reading.until("shard", partial, BLOCK_BYTES)
    partial.rename(final)
    assert reading.hashes("shard", final).sha256 == hashlib.sha256(CONTENT).hexdigest()
    reading.close()


def test_a_growing_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    told: list[int] = []
    reading = ReadBack(told.append)
    with open(path, "wb") as growing:
        for start in range(0, len(CONTENT), BLOCK_BYTES):
            growing.write(CONTENT[start : start + BLOCK_BYTES])
            growing.flush()
            reading.until("shard", path, growing.tell())
    assert reading.hashes("shard", path).sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert sum(told) == len(CONTENT)
    reading.close()


def test_a_read_error_is_raised_when_the_hashes_are_requested(tmp_path: Path) -> None:
    def fail(nbytes: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "shard"
    path.write_bytes(CONTENT)
    reading = ReadBack(fail)
    reading.until("shard", path, BLOCK_BYTES)
    with pytest.raises(OSError, match="Input/output error"):
        reading.hashes("shard", path)
    reading.close()


def test_closing_does_not_wait_for_the_rest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(CONTENT)
    told: list[int] = []

    def until_it_closes(nbytes: int) -> None:
        told.append(nbytes)
        reading._stop.wait(60)

    reading = ReadBack(until_it_closes)
    reading.until("shard", path, len(CONTENT))
    while not told:
        time.sleep(0.01)
    reading.close()
    assert sum(told) < len(CONTENT)


def test_a_finished_file_is_closed(file: Path) -> None:
    reading = ReadBack(lambda nbytes: None)
    for number in range(20):
        reading.hashes(f"shard {number}", file)
    assert open_files_below(file) == []
    reading.close()


def test_a_truncated_file_has_other_hashes_and_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(CONTENT[:100])
    reading = ReadBack(lambda nbytes: None)
    reading.until("shard", path, 200)
    assert reading.hashes("shard", path).sha256 == hashlib.sha256(CONTENT[:100]).hexdigest()
    reading.close()
