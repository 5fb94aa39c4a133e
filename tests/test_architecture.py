"""The arrows of the house: who may import whom."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

GROUND = {"addresses", "errors"}
ARROWS = {
    "addresses.py": set(),
    "errors.py": {"addresses"},
    "search_spaces": GROUND,
    "trainables": GROUND | {"search_spaces"},
    "tracking": GROUND | {"search_spaces"},
    "sweep": GROUND | {"search_spaces", "trainables", "tracking"},
    "reports": GROUND | {"search_spaces", "tracking", "trainables"},
    "tune_main.py": GROUND | {"sweep", "reports"},
}
ONLY_IMPORTER = {"mlflow": "tracking", "ray": "sweep", "optuna": "sweep", "datasets": "trainables"}
ALLOWED_BESIDE = {
    "ray": {"trainables/encoder_trainable.py"},
    "optuna": {"search_spaces/optuna_trials.py", "reports/sections/search.py"},
}


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


MODULES = [path for place in ARROWS for path in modules(place)]


@pytest.mark.parametrize("place", ARROWS)
def test_imports_follow_the_arrows(place):
    forbidden = {name.removesuffix(".py") for name in ARROWS} - ARROWS[place] - {place.removesuffix(".py")}
    wrong = {str(p.relative_to(ROOT)): imports(p) & forbidden for p in modules(place)}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("library", ONLY_IMPORTER)
def test_each_heavy_library_has_one_home(library):
    home, beside = ONLY_IMPORTER[library], ALLOWED_BESIDE.get(library, set())
    importers = {str(path.relative_to(ROOT)) for path in MODULES if library in imports(path)}
    assert {path for path in importers if not path.startswith(f"{home}/")} <= beside


def users(name: str) -> set[str]:
    """The modules that import a name."""
    return {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}
    }


def test_only_options_take_credentials_and_only_clients_get_them():
    assert users("take_credentials") == {"sweep/command_line.py"}
    clients = {"sweep/jobs.py", "sweep/search.py", "tracking/store_address.py"}
    assert users("with_credentials") == clients


def test_only_the_look_at_attention_reloads_models():
    assert {path.name for path in modules("reports") if "trainables" in imports(path)} == {"attention.py"}


@pytest.mark.parametrize("place", ARROWS)
def test_only_one_module_prints(place):
    """And the table that is drawn while trials run, in whose columns nothing is markup."""
    printers = {ROOT / "sweep" / name for name in ("terminal.py", "progress.py")}
    found = {str(p.relative_to(ROOT)): printing(p) for p in modules(place) if p not in printers}
    assert not {path: names for path, names in found.items() if names}


def printing(path: Path) -> set[str]:
    """What a module has with which it could print by itself: Rich takes a name's brackets for markup."""
    harmless = {"rich.table", "rich.text"}
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            of_rich = (node.module or "").split(".")[0] == "rich" and node.module not in harmless
            found |= {"rich"} if of_rich else {each.name for each in node.names} & {"console"}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name.split(".")[0] == "rich"}
        elif isinstance(node, ast.Attribute) and node.attr in {"console", "from_markup"}:
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.stdout.write"}:
            found.add(ast.unparse(node))
    return found


def test_the_readme_has_a_line_for_every_file():
    readme = (ROOT / "README.md").read_text()
    assert not [path for path in MODULES if f"| `{path.name}` | " not in readme]


def test_search_spaces_are_plain_data():
    names = set().union(*(imports(path) for path in modules("search_spaces")))
    assert not names & {"torch", "ray", "mlflow", "transformers", "numpy"}


def test_no_module_outgrows_a_readers_mind():
    lengths = {str(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 320}
