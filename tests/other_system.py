"""Take away from ixtune's modules what macOS or Windows does not have: a simulation, since neither is at hand.

It is put in force by a `sitecustomize.py` (see `environment`), before anything is imported and in the processes that
are started too. The libraries keep everything, because their builds for Linux need it; but whoever renames or removes
a file that is open, on the simulated Windows, is refused. What cannot be had this way: other path separators, another
`sys.platform`, and the libraries' builds for these systems.
"""

from __future__ import annotations

import builtins
import ctypes
import multiprocessing
import os
import shutil
import signal  # noqa: F401 - so that it is there to be hidden from
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

LINUX_ONLY = {
    "os": {"posix_fadvise", "posix_fallocate", "sched_getaffinity", "copy_file_range", "sendfile", "syncfs"},
    "ctypes": {"CDLL"},  # in its place `_WithoutSyncfs`
}
POSIX_ONLY = {
    "os": {
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "fork",
        "getuid",
        "preadv",
        "readv",
        "setpgid",
        "statvfs",
        "sync",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM"},
    "fcntl": None,
    "resource": None,
    "pwd": None,
    "termios": None,
}
_real_import = builtins.__import__
_looking = False


def environment(system: str, folder: Path) -> dict[str, str]:
    """The variables of a process that runs as on another system; `folder` gets the file that sees to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"import other_system\nother_system.become({system!r})\n")
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def become(system: str) -> None:
    multiprocessing.set_start_method("spawn")
    hidden: dict[str, Any] = {**LINUX_ONLY}
    if system == "windows":
        hidden |= POSIX_ONLY
        shutil._use_fd_functions = False  # as there: by paths, since folders cannot be opened
        hidden["os"] = LINUX_ONLY["os"] | POSIX_ONLY["os"]
    seen_by_ixtune = {name: _less(sys.modules[name], gone) for name, gone in hidden.items() if gone is not None}

    def find(name: str, globals: Any = None, *others: Any, **options: Any) -> ModuleType:
        if globals and str(globals.get("__name__")).partition(".")[0] == "ixtune":
            if name in hidden and hidden[name] is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            if name in seen_by_ixtune:
                return seen_by_ixtune[name]
        return _real_import(name, globals, *others, **options)

    builtins.__import__ = find
    sys.addaudithook(lambda event, arguments: _audit(system, event, arguments))


def _less(module: ModuleType, gone: set[str]) -> ModuleType:
    made = ModuleType(module.__name__)
    made.__dict__.update({name: value for name, value in vars(module).items() if name not in gone})
    if module is ctypes:
        made.CDLL = _WithoutSyncfs  # type: ignore[attr-defined]
    return made


class _WithoutSyncfs(ctypes.CDLL):
    def __getattr__(self, name: str) -> Any:
        if name == "syncfs":
            raise AttributeError(name)
        return super().__getattr__(name)


def _audit(system: str, event: str, arguments: tuple[Any, ...]) -> None:
    global _looking
    if _looking or event not in ("open", "os.rename", "os.remove", "os.rmdir"):
        return
    paths = [os.fspath(argument) for argument in arguments[:2] if isinstance(argument, str | os.PathLike)]
    _looking = True
    try:
        if event == "open":
            _refuse_to_open(system, paths, through_os=arguments[1] is None)
        elif system == "windows":
            held = _held()
            for path in map(os.path.abspath, paths):
                if any(one == path or one.startswith(path + os.sep) for one in held):
                    raise PermissionError(13, "the file is open in this process", path)
    finally:
        _looking = False


def _refuse_to_open(system: str, paths: list[Any], *, through_os: bool) -> None:
    if not paths or not _asked_by_ixtune(sys._getframe(2)):
        return
    if str(paths[0]).startswith("/proc/"):
        raise FileNotFoundError(2, "there is no /proc", paths[0])
    if system == "windows" and through_os and os.path.isdir(paths[0]):
        raise PermissionError(13, "a folder cannot be opened", paths[0])


def _asked_by_ixtune(frame: FrameType | None) -> bool:
    """Whether the first caller that is not of the standard library is a module of ixtune."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__")).partition(".")[0]
        if name == "ixtune":
            return True
        if name not in sys.stdlib_module_names and name != __name__:
            return False
        frame = frame.f_back
    return False


def _held() -> set[str]:
    """Every file that this process has open or mapped."""
    held = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            held.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as file:
        held |= {line.split(maxsplit=5)[5].strip() for line in file if line.count("/")}
    return held
