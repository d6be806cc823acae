"""Operating system calls that not every system has, each with a fallback.

Linux has all of them. macOS has no posix_fadvise, posix_fallocate, syncfs, sched_getaffinity or /proc. Windows also has
no flock, no SIGHUP, SIGUSR1 and SIGKILL, no resource module, no process groups of this kind, opens no folders, and
renames and removes no file that is open.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

SIGHUP: int | None = getattr(signal, "SIGHUP", None)
ENDING_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
"""Signals that end a run with a checkpoint."""
KILLED = 128 + 9
"""Exit code of a process that was killed, as shells report it."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # differs for each kernel and each boot; containers share it
_MEMORY = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_NVIDIA = Path("/proc/driver/nvidia/version")


def has_posix_files() -> bool:
    """Return whether folders can be opened like files, and open files be renamed and removed; not so on Windows."""
    return hasattr(os, "O_DIRECTORY")


def has_process_groups() -> bool:
    """Return whether a process can be started in its own group and with the descriptors of a pipe."""
    return hasattr(os, "setpgid")


def lock(descriptor: int) -> bool | None:
    """Try to lock an open file or folder without waiting; return whether it was free, None where locks do not exist.

    The kernel releases the lock when the process, and all that inherited the descriptor, have ended.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # NFS among others: folders there cannot be locked
        return None
    return True


def open_for_lock(path: Path, *, follow: bool = False) -> int | None:
    """Open a file or folder for `lock`; None where there are no locks, since Windows cannot rename open files.

    Args:
        path: The file or folder.
        follow: Whether a symbolic link is followed.

    Raises:
        OSError: It cannot be opened, or is a symbolic link that is not to be followed.
    """
    try:
        import fcntl  # noqa: F401 - looked for, not used
    except ImportError:
        return None
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))


def close(descriptor: int | None) -> None:
    """Close a descriptor of `open_for_lock`, which releases its lock."""
    if descriptor is not None:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk; a rename is durable only when its folder is."""
    if has_posix_files():
        descriptor = os.open(path, os.O_RDONLY)
    elif path.is_dir():
        return
    else:  # Windows flushes only what it may write
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(descriptor: int | None) -> bool:
    """Flush the file system of an open file or folder; False where the system has no such call.

    syncfs(2), not sync(2): it does not touch other disks, and on Linux since 5.8 it reports what could not be
    written since `descriptor` was opened, which sync(2) never does.

    Raises:
        OSError: The disk is full or refuses a write.
    """
    if descriptor is None:
        return False
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    if syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return True


def reserve(path: Path, descriptor: int, nbytes: int) -> None:
    """Allocate the space of an open file at once, to find out early if the disk is too small.

    Where that is not possible, the free space is compared.

    Raises:
        OSError: The disk has less free space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # file systems without support for it
                raise
    if shutil.disk_usage(path.parent).free < nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_ahead(descriptor: int) -> None:
    """Ask the kernel to read a file ahead of its reader; does nothing where unsupported."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def drop_cached(descriptor: int, nbytes: int = 0) -> None:
    """Ask the kernel to drop the first bytes of a file (0: all) from its cache; does nothing where unsupported.

    On Linux this starts the writing of dirty pages and drops the others (mm/fadvise.c).
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, nbytes, os.POSIX_FADV_DONTNEED)


def kernel() -> str | None:
    """Return a short name of the running kernel, or None where it is unknown."""
    with suppress(OSError):
        return hashlib.sha256(_BOOT_ID.read_bytes()).hexdigest()[:8]
    return None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Return the average number of processes that want to run, over a minute; None if the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def available_bytes() -> int | None:
    """Return the main memory available to a new process; None if the system does not say."""
    if (available := _bytes_in(_MEMORY, "MemAvailable:")) is not None:
        return available
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def peak_memory_bytes() -> int:
    """Return the peak main memory of this process; 0 where the system does not say."""
    if (peak := _status("VmHWM:")) is not None:  # ru_maxrss begins with that of the process which started this one
        return peak
    try:
        import resource
    except ImportError:
        return _peak_by_psutil()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux, bytes on macOS


def reset_peak_memory() -> None:
    """Let the peak main memory of this process start again from what it uses now; do nothing outside Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)


def resident_bytes() -> int:
    """Return the current main memory of this process; 0 where the system does not say."""
    if (now := _status("VmRSS:")) is not None:
        return now
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def _peak_by_psutil() -> int:
    try:
        import psutil
    except ImportError:
        return 0
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # only Windows reports the peak


def _status(field: str) -> int | None:
    """Return a number of bytes of /proc/self/status."""
    return _bytes_in(_STATUS, field)


def _bytes_in(path: Path, field: str) -> int | None:
    """Return the value of a line such as `MemAvailable:  123 kB` in a file of /proc; None without such a line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is installed; its program is looked for where it has no entry in /proc."""
    return _NVIDIA.exists() or shutil.which("nvidia-smi") is not None
