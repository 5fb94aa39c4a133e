"""How much memory this process can still have, and no more than that."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from errors import UserError

_COPIES = 4  # measured: reading and splitting 600 MB of texts takes 2.4 GB
_GROUPS = Path("/proc/self/cgroup")
# a controller in that file -> the folder of its groups, the files with the limit and the use, and the line
# of memory.stat with the part of the use that the kernel gives back
_CONTROLLERS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def free_memory() -> int:
    """Bytes that the machine, and every control group around this process, can still give."""
    return max(0, min(psutil.virtual_memory().available, *_free_in_groups(), sys.maxsize))


@contextmanager
def memory_limited_to(count: int) -> Iterator[None]:
    """Raise MemoryError for more than ``count`` further bytes: the kernel would just kill the process."""
    if sys.platform != "linux":  # other systems have no such limit
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [psutil.Process().memory_info().data + count, soft, hard]
    lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def check_fits(what: str, read: int, free: int) -> None:
    """Raise UserError if ``read`` bytes of texts, and the work on them, do not fit into ``free`` bytes."""
    if (needed := read * _COPIES) > free:
        raise too_large(what, f"at least {needed / 1e9:.2f} GB", free)


def too_large(what: str, needed: str, free: int) -> UserError:
    """The error for data that needs more than the ``free`` bytes of memory."""
    return UserError(
        f"{what} does not fit into memory: it needs {needed}, and {free / 1e9:.2f} GB are free: give a "
        "part of it, or use a machine with more memory"
    )


def _free_in_groups() -> Iterator[int]:
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, group in (line.split(":", 2) for line in lines):
        for controller in {"", "memory"} & set(controllers.split(",")):
            root, *files = _CONTROLLERS[controller]
            inner = root / group.lstrip("/")  # inside a container it may not exist, but the root does
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(root) and (folder / files[0]).is_file():
                    yield from _free_in(folder, *files)


def _free_in(folder: Path, limit: str, used: str, given_back: str) -> Iterator[int]:
    allowed = (folder / limit).read_text().strip()
    if allowed.isdigit():  # "max" means no limit
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield int(allowed) - int((folder / used).read_text()) + int(stat.get(given_back, 0))
