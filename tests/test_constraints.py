"""constraints.txt: the version of everything that is installed, by whomever it is required."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import ROOT

DIRECT = ("requirements.txt", "requirements-dev.txt", "docker/requirements-server.txt")


def required(file):
    """The requirements in a file, without the files it names."""
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def holds_here(requirement, extras=("",)):
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras)


def constraints():
    """What this Python, on this machine, is held to: the version of each distribution by its name."""
    here = [each for each in required("constraints.txt") if holds_here(each)]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in here}


def pulled_in(requirements):
    """The distributions that these requirements lead to here, and which of them are installed."""
    found, waiting = {}, [(each.name, frozenset(each.extras)) for each in requirements]
    while waiting:
        name, extras = waiting.pop()
        seen = found.setdefault(canonicalize_name(name), set())
        if seen >= (extras | {""}):
            continue
        seen |= extras | {""}
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # the build of torch without CUDA, with one's own
            continue
        below = [each for each in map(Requirement, needs) if holds_here(each, seen)]
        waiting += [(each.name, frozenset(each.extras)) for each in below]
    return found


@pytest.mark.parametrize("file", DIRECT)
def test_a_requirement_is_pinned_to_the_version_in_the_constraints(file):
    pinned = {canonicalize_name(each.name): str(each.specifier) for each in required(file)}
    assert pinned
    assert {name: f"=={constraints()[name]}" for name in pinned} == pinned


def test_what_is_installed_here_is_what_the_constraints_say():
    expected = constraints()
    names = pulled_in(required("requirements.txt") + required("requirements-dev.txt"))
    assert len(names) > 100
    assert not names.keys() - expected.keys()
    installed = {}
    for name in names:
        try:
            installed[name] = Version(metadata.version(name)).public  # 2.13.0+cpu is torch 2.13.0
        except metadata.PackageNotFoundError:
            assert name.startswith(("nvidia-", "cuda-", "triton")), name
    assert installed == {name: expected[name] for name in installed}


@pytest.mark.parametrize("file", ["Makefile", "docker/Dockerfile"])
def test_every_installation_is_held_to_the_constraints(file):
    logical = re.sub(r"\\\n\s*", "", (ROOT / file).read_text())
    installs = re.findall(r"pip install (?!.*uv==).*?(?=;|&&|$)", logical, re.M)
    assert len(installs) >= 2
    assert all("-c constraints.txt" in each for each in installs), installs
