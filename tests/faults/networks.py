"""Several machines in one: network namespaces joined by a bridge, whose links can be cut."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from tests.faults.clusters import Place


class Network:
    """Namespaces by number, and the ``host`` address under which all of them reach this process's."""

    def __init__(self, count: int) -> None:
        process = os.getpid()
        self._name = f"bs{process % 10**7}"  # an interface's name has 15 characters
        self._prefix = f"10.{200 + process // 250 % 50}.{process % 250}"
        self.host = f"{self._prefix}.1"
        self.places = [
            Place(f"{self._prefix}.{2 + i}", ("ip", "netns", "exec", f"{self._name}-{i}"))
            for i in range(count)
        ]

    def create(self) -> None:
        """The bridge, and each namespace at a link of its own."""
        _ip(f"link add {self._name} type bridge")
        _ip(f"addr add {self.host}/24 dev {self._name}")
        _ip(f"link set {self._name} up")
        for number, place in enumerate(self.places):
            namespace, link = f"{self._name}-{number}", self._link(number)
            _ip(f"netns add {namespace}")
            _ip(f"link add {link} type veth peer name eth0 netns {namespace}")
            _ip(f"link set {link} master {self._name} up")
            _ip(f"-n {namespace} addr add {place.ip}/24 dev eth0")
            _ip(f"-n {namespace} link set eth0 up")
            _ip(f"-n {namespace} link set lo up")

    def cut(self, number: int) -> None:
        """Pull the cable: packets vanish, no connection is told."""
        _ip(f"link set {self._link(number)} down")

    def mend(self, number: int) -> None:
        _ip(f"link set {self._link(number)} up")

    def remove(self) -> None:
        """Remove what there is of it; nothing may run in it any more."""
        for number in range(len(self.places)):
            _ip(f"netns del {self._name}-{number}", check=False)
            _ip(f"link del {self._link(number)}", check=False)
        _ip(f"link del {self._name}", check=False)

    def _link(self, number: int) -> str:
        return f"{self._name}v{number}"


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """So many namespaces; this process stays outside and reaches them over the bridge."""
    joined = Network(count)
    try:
        joined.create()
        yield joined
    finally:
        joined.remove()


def namespaces_missing() -> str:
    """Why namespaces cannot be made here, empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "no ip command: apt-get install iproute2"
    try:
        with network(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"this machine allows no network namespaces: {error.stderr.strip()}"


def _ip(arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments.split()], check=check, capture_output=True, text=True)
