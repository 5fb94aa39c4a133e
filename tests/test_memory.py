import psutil
import pytest

from trainables import memory
from trainables.memory import free_memory, memory_limited_to

GIGABYTE = 1 << 30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes the files of control groups as the kernel shows them, in both of its versions."""

    def write(controller, lines, folders):
        _, limit, used, given_back = memory._CONTROLLERS[controller]
        for folder, (allowed, in_use, back) in folders.items():
            place = tmp_path / controller / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / limit).write_text(f"{allowed}\n")
            (place / used).write_text(f"{in_use}\n")
            (place / "memory.stat").write_text(f"anon 1\n{given_back} {back}\n")
        (tmp_path / "groups").write_text(lines)
        monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
        files = (tmp_path / controller, limit, used, given_back)
        monkeypatch.setitem(memory._CONTROLLERS, controller, files)

    return write


def test_without_a_group_it_is_what_the_machine_has(groups):
    groups("", "0::/\n", {"": ("max", 5, 0)})
    assert free_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


@pytest.mark.parametrize(
    ("controller", "line"), [("", "0::/a/b\n"), ("memory", "4:cpu,memory:/a/b\n0::/\n")]
)
def test_the_tightest_group_around_this_process_counts(groups, controller, line):
    mine, around = (9000, 1000, 100), (4000, 3500, 700)
    groups(controller, line, {"a/b": mine, "a": around, "": ("max", 0, 0), "other": (10, 10, 0)})
    assert free_memory() == 4000 - 3500 + 700


def test_in_a_container_the_root_is_the_group(groups):
    groups("memory", "4:memory:/docker/not/here\n", {"": (2000, 500, 0)})
    assert free_memory() == 1500


def test_more_than_allowed_is_an_error_and_the_limit_goes_with_the_block():
    with memory_limited_to(GIGABYTE // 4), pytest.raises(MemoryError):
        bytearray(3 * GIGABYTE)
    with memory_limited_to(GIGABYTE):
        assert bytearray(GIGABYTE // 4)
    assert bytearray(GIGABYTE // 2)
