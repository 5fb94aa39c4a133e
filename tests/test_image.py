"""The image: what gets into it, and, under ``make test-image``, a study and a server that run in it.

It is built with buildah, which needs no daemon. Where the pinned base cannot be pulled, a Debian made by
debootstrap stands in for it.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml

from tests.faults import processes
from tests.faults.servers import Server, postgres, postgres_missing
from tests.helpers import ROOT

COMPOSE = ROOT / "docker" / "compose.yaml"
STAND_IN = "localhost/batchscale-test-base"
SOMEBODY = 12345  # a user that the image does not know
STUDY = (
    "--space batch_lr_grid --demo --name image --models bert-tiny --target-batch-sizes 64 128 "
    "--scaling-rules fixed --epochs 1 --train-size 320 --eval-size 60 --max-length 32"
).split()
# of a user, in a folder that is not git's
STRAY = (
    ".env trainables/.env reviews.csv search_spaces/data.parquet model.safetensors mlflow.db optuna.db "
    "results/x/report.html sweep/results/report.html sweep/__pycache__/study.cpython-311.pyc "
    "ray_results/x/checkpoint"
).split()
needs_buildah = pytest.mark.skipif(
    shutil.which("buildah") is None or os.getuid() != 0, reason="needs root and buildah"
)
needs_debootstrap = pytest.mark.skipif(shutil.which("debootstrap") is None, reason="needs debootstrap")


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, folder):
        self._global = ["--storage-driver", "vfs", "--root", str(folder / "root")]
        self._global += ["--runroot", str(folder / "run")]

    def command(self, *arguments):
        return ["buildah", *self._global, *map(str, arguments)]

    def __call__(self, *arguments):
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buildah")
    yield Buildah(folder)
    shutil.rmtree(folder)


def pip_as_here(folder):
    """The volumes that let pip in a build reach what pip reaches here."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    settings.pop("constraint", None)  # of this machine's own environments
    lines = [f"{name} = {value}" for name, value in settings.items()]
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(["[global]", *lines, ""]))
    volumes = {configuration: "/etc/pip.conf", Path("/etc/resolv.conf"): "/etc/resolv.conf"}
    for value in " ".join(settings.values()).split():
        path = Path(value.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            whole = path.parent if path.name == "simple" else path  # the files of an index lie beside it
            volumes[whole] = str(whole)
    return [f"--volume={path}:{inside}:ro" for path, inside in volumes.items()]


@pytest.fixture(scope="module")
def base(buildah, tmp_path_factory):
    """The pinned base, or what stands in for it."""
    pinned = re.search(r"^ARG BASE=(\S+)", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)[1]
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = buildah.command("pull", "--retry", "0", pinned)
        if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
            return pinned
    print(f"{pinned} cannot be pulled: a Debian made by debootstrap stands in for it")
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)[1]
    folder = tmp_path_factory.mktemp("debian")
    packages = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", packages, release, str(folder)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    container = buildah("from", "scratch")
    buildah("add", container, folder, "/")
    buildah("commit", container, STAND_IN)
    shutil.rmtree(folder)
    return STAND_IN


def built(buildah, base, folder, target):
    arguments = ["--isolation", "chroot", "--pull=never", "--build-arg", f"BASE={base}"]
    if base == STAND_IN:  # pip finds a build without CUDA where it finds everything else
        arguments += ["--build-arg", "CPU_INDEX="]
    dockerfile = ROOT / "docker" / "Dockerfile"
    buildah(
        "build", *arguments, *pip_as_here(folder), "--target", target, "-f", dockerfile, "-t", target, ROOT
    )
    return target


@pytest.fixture(scope="module")
def study_image(buildah, base, tmp_path_factory):
    return built(buildah, base, tmp_path_factory.mktemp("pip"), "study")


@pytest.fixture(scope="module")
def tracking_image(buildah, base, tmp_path_factory):
    return built(buildah, base, tmp_path_factory.mktemp("pip"), "tracking")


@pytest.fixture
def container(buildah):
    """Makes a container of an image, which goes with the test."""
    with contextlib.ExitStack() as stack:

        def make(image):
            made = buildah("from", image)
            stack.callback(buildah, "rm", made)
            return made

        yield make


@pytest.mark.slow
@needs_buildah
def test_nothing_but_what_a_study_needs_gets_into_the_image(buildah, container, tmp_path):
    context, destination = tmp_path / "context", tmp_path / "image"
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [file for file in listed.splitlines() if (ROOT / file).exists()]
    for file in files:
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, context / file)
    for stray in STRAY:
        (context / stray).parent.mkdir(parents=True, exist_ok=True)
        (context / stray).write_text("stray")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    buildah("build", "-f", tmp_path / "Dockerfile", "-t", "files", context)
    shutil.copytree(buildah("mount", container("files")), destination)
    found = {str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file()}
    packages = ("search_spaces/", "trainables/", "sweep/", "tracking/", "reports/")
    code = {file for file in files if file.startswith(packages)}
    top = {"addresses.py", "errors.py", "tune_main.py", "LICENSE", "requirements.txt", "constraints.txt"}
    top |= {"docker/make_secrets.py", "docker/requirements-server.txt"}
    assert found == code | top


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_compose_takes_the_file_and_gives_gpus_to_one_service_only(tmp_path):
    content = yaml.safe_load(COMPOSE.read_text())
    assert content.pop("name") == "batchscale"  # which Debian 12's docker-compose does not know yet
    for service in content["services"].values():
        service.pop("profiles", None)  # of whatever profile, it is to be read
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(content))
    where = ["-f", str(tmp_path / "compose.yaml"), "--project-directory", str(ROOT)]
    command = ["docker-compose", *where, "config"]
    moved = os.environ | {"RAY_GPU_MEMORY": "500g"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=moved)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert [name for name, service in services.items() if "deploy" in service] == ["ray-gpu"]
    assert all(":" in service["image"] for service in services.values())
    assert services["ray-gpu"]["mem_limit"] == "500g"
    assert services["ray"]["mem_limit"] == "32g"
    assert sum(len(service.get("ports", [])) for service in services.values()) == 3


def megabytes(server):
    return sum(process.memory_info().rss for process in server.family()) / 1e6


@pytest.mark.image
@needs_buildah
@needs_debootstrap
def test_a_study_runs_as_a_user_that_the_image_does_not_know(buildah, container, study_image, tmp_path):
    tmp_path.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, SOMEBODY, SOMEBODY)
    command = buildah.command(
        *("run", "--isolation", "chroot", "--user", f"{SOMEBODY}:{SOMEBODY}", "--workingdir", "/data"),
        *("--volume", f"{work}:/data", container(study_image), "--"),
        *(*configuration(buildah, study_image)["Entrypoint"], *STUDY),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not [line for line in (done.stdout + done.stderr).splitlines() if "warning" in line.lower()]
    assert (work / "results" / "image" / "report.html").stat().st_uid == SOMEBODY
    assert {path.stat().st_uid for path in work.rglob("*")} == {SOMEBODY}
    assert re.search(r"Ray dashboard  http://(localhost|127\.0\.0\.1|0\.0\.0\.0):\d+", done.stdout)


@pytest.mark.image
@needs_buildah
@needs_debootstrap
def test_the_tracking_server_is_small_and_answers_on_any_port(buildah, container, tracking_image, tmp_path):
    port, image = processes.free_port(), configuration(buildah, tracking_image)
    command = buildah.command(
        *("run", "--isolation", "chroot", "--user", "1000:1000", container(tracking_image), "--"),
        *(*image["Entrypoint"], *image["Cmd"], "--port", port),
    )
    with Server(tmp_path, command, f"http://127.0.0.1:{port}", "/health") as server:
        search = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        assert requests.get(search, headers={"Host": "localhost:18080"}, timeout=30).ok
        assert requests.get(search, headers={"Host": "evil.example"}, timeout=30).status_code == 403
        inside = [process for process in server.family() if process.uids().real == 1000]
        print(f"{len(inside)} processes, {megabytes(server):.0f} MB")
        assert 0 < len(inside) <= 6


@pytest.mark.image
@needs_buildah
@needs_debootstrap
@pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing())
def test_mlflow_works_with_the_rights_and_the_passwords_that_compose_gives_it(
    buildah, container, tracking_image, tmp_path
):
    port, image = processes.free_port(), configuration(buildah, tracking_image)
    files = Path(buildah("mount", container(tracking_image)))
    with postgres() as database:
        where = database.uri.split("@")[1]
        moved = {"@postgres/mlflow": f"@{where}", "--port 5000": f"--port {port}"}
        secrets = confined("secrets", files, image, tmp_path)
        said = subprocess.run(secrets, capture_output=True, text=True, check=True).stdout
        password = (tmp_path / "secrets" / "mlflow").read_text()
        assert password not in said
        command = confined("mlflow", files, image, tmp_path, moved)
        with Server(tmp_path, command, f"http://127.0.0.1:{port}", "/health") as server:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            assert re.search(r"^Uid:\s+1000\s+1000\s+1000\s+1000$", status, re.M)
            assert re.search(r"^CapBnd:\s+0+$", status, re.M)
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
            artifact = f"{server.uri}/api/2.0/mlflow-artifacts/artifacts/films/model"
            content = b"weights" * 1_000_000
            assert requests.put(artifact, data=content, timeout=30).status_code == 401
            admin = ("admin", password)
            assert requests.put(artifact, data=content, auth=admin, timeout=60).ok
            assert requests.get(artifact, auth=admin, timeout=60).content == content
            create = f"{server.uri}/api/2.0/mlflow/experiments/create"
            made = requests.post(create, json={"name": "films"}, auth=admin, timeout=30)
            assert made.ok, made.text
            print(f"{megabytes(server):.0f} MB")


def confined(service, files, image, folder, moved=None):
    """The command that runs a service of compose.yaml on the files of an image, with what it is left.

    Its volumes are folders in ``folder``. ``moved`` says which parts of its command are others here, where
    all share one network.
    """
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    content = yaml.safe_load(text)["services"][service]
    words = [*content["entrypoint"], *(each.replace("$$", "$") for each in content["command"])]
    for ours, here in (moved or {}).items():
        assert ours in words[-1]
        words[-1] = words[-1].replace(ours, here)
    variables = [each for each in content.get("environment", {}).items() if each[1] is not None]
    environment = [*image["Env"], *(f"{name}={value}" for name, value in variables)]
    start = ["chroot", str(files), "env", "-i", *environment, "setpriv", *rights(content, image), *words]
    script = "\n".join([*mounts(content, files, folder), 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-ec", script, "sh", *start]


def rights(content, image):
    """A service's user and capabilities, as setpriv takes them."""
    assert content["cap_drop"] == ["ALL"]
    assert content["security_opt"] == ["no-new-privileges:true"]
    user, group = {"root": "0:0"}.get(content.get("user"), image["User"]).split(":")
    kept = ["-all", *(f"+{each.lower()}" for each in content.get("cap_add", []))]
    identity = [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    return [*identity, "--inh-caps=-all", f"--bounding-set={','.join(kept)}", "--no-new-privs"]


def mounts(content, files, folder):
    """The commands that put a service's volumes in their places, on files that cannot be written."""
    assert content["read_only"]
    yield f"mount --make-rprivate /\nmount --bind {files} {files}"
    for volume in content["volumes"]:
        name, place, *mode = volume.split(":")
        inside = files / place[1:]
        if not (folder / name).exists():
            (folder / name).mkdir()
            if inside.exists():  # whose owner Docker gives to a new volume
                os.chown(folder / name, inside.stat().st_uid, -1)
        inside.mkdir(exist_ok=True)
        yield f"mount --bind {folder / name} {inside}"
        if mode == ["ro"]:
            yield f"mount -o remount,bind,ro {inside}"
    yield from (f"mount --rbind {each} {files}{each}" for each in ("/dev", "/proc"))
    yield f"mount -o remount,bind,ro {files}"
    for each in content.get("tmpfs", []):
        yield f"mount -t tmpfs -o noexec,nosuid,nodev none {files}{each}"


def configuration(buildah, image):
    return json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
