"""Journal of answers that are not written yet, so that a killed prediction is resumed."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

from ixtune.answering.answerer import Answer
from ixtune.errors import IxtuneError
from ixtune.training.processes import launch


class Journal:
    """`.OUT.unfinished`: one line with the key of questions and settings, then one line per answer.

    Each further process writes `.OUT.unfinished.N`; all of them are read.
    """

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        first = f".{out.name}.unfinished"
        self.path = out.with_name(f"{first}.{launch.rank()}" if launch.rank() else first)
        self.pattern = (out.parent, first)
        self.key = key
        self.kept = 0  # answers, including those of earlier processes

    def read(self) -> dict[int, dict[str, Any]]:
        """Return the answers of earlier processes by the index of their question; drop a line that a kill cut off.

        An id is not enough: records of several sources may have the same one.

        Raises:
            IxtuneError: They belong to other questions or settings.
        """
        found: dict[int, dict[str, Any]] = {}
        for path in self._paths():
            *lines, torn = path.read_bytes().split(b"\n")
            if lines and json.loads(lines[0]) != json.loads(json.dumps(self.key)):
                raise IxtuneError(
                    "another prediction into this file was not finished, with another model, questions or settings",
                    where=str(path),
                    hint="rerun its command to resume it, or delete that file to start over",
                )
            if torn:
                os.truncate(path, path.stat().st_size - len(torn))
            found |= {line.pop("index"): line for line in map(json.loads, lines[1:])}
        self.kept = len(found)
        return found

    def remove(self) -> None:
        """Delete the journals of all processes."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        folder, first = self.pattern
        names = (folder / first, *folder.glob(f"{glob.escape(first)}.*"))
        return sorted(path for path in names if path.is_file())

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        self._is_new = self._file.tell() == 0
        if self._is_new:
            self._write(self.key)
            self.sync()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if self._is_new and not self.kept:  # it would only refuse other settings
            self.path.unlink()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(self._remains()) from error

    def _remains(self) -> str:
        """Say what an interruption leaves."""
        if launch.world_size() > 1:  # this process does not know how many the others have
            kept = "finished answers are"
        elif self.kept:
            kept = f"{self.kept:,} answers are" if self.kept > 1 else "1 answer is"
        else:
            return "there is no answer yet, and nothing was written"
        return f"{kept} kept; rerun the same command to resume"

    def add(self, index: int, answer: Answer) -> dict[str, Any]:
        """Append one answer."""
        content: dict[str, Any] = {"answer": answer.text, "finish": answer.finish, "tokens": answer.tokens}
        if answer.added:
            content["added"] = answer.added
        self._write({"index": index, **content})
        self.kept += 1
        return content

    def sync(self) -> None:
        """Flush to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
