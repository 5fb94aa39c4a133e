"""Which Pythons there are: what make accepts, and whether README and pyproject.toml name the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from tests.helpers import ROOT

PYTHONS = re.search(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()

# this Python, which says that it is another, and notes what else it is asked to do
OTHER = """#!{python}
import sys
if sys.argv[1] != "-c":
    open("asked", "w").write(" ".join(sys.argv[1:]))
    sys.exit(1)
sys.version_info, sys.abiflags = {version}, "{flags}"
exec(sys.argv[2])
"""


def demo(folder, version, flags=""):
    """`make demo` where nothing is installed: its error lines, and what it asked that Python to do."""
    shutil.copy(ROOT / "Makefile", folder)
    for file in ("requirements.txt", "constraints.txt"):
        (folder / file).touch()
    python = folder / "python"
    numbers = tuple(map(int, version.split(".")))
    python.write_text(OTHER.format(python=sys.executable, version=numbers, flags=flags))
    python.chmod(0o755)
    # an outer make hands down its own variables
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "VENV"))}
    command = ["make", "demo", "PYTHON=./python"]
    found = subprocess.run(command, check=False, cwd=folder, env=alone, capture_output=True, text=True)
    assert found.returncode != 0
    asked = folder / "asked"
    return found.stderr.splitlines(), asked.read_text() if asked.exists() else None


@pytest.mark.parametrize(("version", "flags"), [("2.7", ""), ("3.10", ""), ("3.14", ""), ("3.13", "t")])
def test_a_python_that_was_not_tried_is_refused_before_anything_is_installed(tmp_path, version, flags):
    (line, of_make), asked = demo(tmp_path, version, flags)
    assert line.startswith(f"error: ./python is Python {version}{flags}, and this runs on 3.11 3.12 3.13: ")
    assert of_make.startswith("make: ***")
    assert asked is None


@pytest.mark.parametrize("version", PYTHONS)
def test_a_python_that_was_tried_is_used(tmp_path, version):
    assert demo(tmp_path, version)[1] == "-m venv .venv"


def test_readme_and_pyproject_name_the_same():
    *older, newest = PYTHONS
    assert f"Python {', '.join(older)} or {newest}" in (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    accepted = SpecifierSet(project["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}.1" in accepted] == PYTHONS
