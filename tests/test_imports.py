"""The shape of the code: imports go one way, files stay short, and what must start fast or run bare imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mnet_search"
ROOMS = ("models", "spaces", "studies", "dashboards", "search")  # a room imports only rooms to its left
MAX_LINES = 450

# What runs where nothing but torch, torchvision and numpy is installed, with all that it imports of ours.
BARE_MODULES = ("search.training", "search.data")
BARE_LIBRARIES = {"torch", "torchvision", "numpy"}

# Each costs 0.3 s or more; `--help` and the cheap commands must do without.
HEAVY_LIBRARIES = ("torch", "ray", "pandas", "optuna", "dash", "sklearn")


@dataclass(frozen=True)
class Import:
    """One imported name in full; the importer is room.module; `at_start` where importing the importer runs it."""

    importer: str
    name: str
    line: int
    at_start: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name}"


@dataclass(frozen=True)
class Tree:
    """Every module of every room as room.module ("models.arch"; a room's own __init__ is "models"), and all imports."""

    modules: dict[str, Path]
    imports: tuple[Import, ...]

    def target(self, found: Import) -> str | None:
        """The module of ours that an import means; None where it is somebody else's."""
        prefix, _, rest = found.name.partition(".")
        if prefix != PACKAGE:
            return None
        # `from mnet_search.models.arch import Arch` reads mnet_search.models.arch.Arch: cut it until it is a module.
        while rest not in self.modules and "." in rest:
            rest = rest.rpartition(".")[0]
        return rest


def read_tree(root: Path) -> Tree:
    """Parse every room below a root."""
    modules = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(part for part in parts if part != "__init__")] = path
    imports = [found for module, path in modules.items() for found in read_imports(module, path)]
    return Tree(modules, tuple(imports))


def read_imports(module: str, path: Path) -> Iterator[Import]:
    """Every import in a file, those inside functions and for the type checker too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *package.split(".")]
            base = [*above[: len(above) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from (Import(module, ".".join([*base, alias.name]), node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for child in node.body for found in walk(child, False))
            yield from (found for child in node.orelse for found in walk(child, at_start))
        else:
            at_start = at_start and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from (found for child in ast.iter_child_nodes(node) for found in walk(child, at_start))

    return walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


# ---------------------------------------------------------------- the rules: each says what breaks it


def wrong_arrows(tree: Tree) -> list[str]:
    """Imports of a room that is not to the left, and of things of ours that are in no room."""
    wrong = []
    for found in tree.imports:
        target = tree.target(found)
        if target is None:
            continue
        importer, imported = found.importer.split(".")[0], target.split(".")[0]
        if imported not in ROOMS or ROOMS.index(imported) > ROOMS.index(importer):
            wrong.append(str(found))
    return wrong


def bare_rooms(tree: Tree) -> list[str]:
    """`import models`: it works only by accident of the working directory, and may be the user's own folder."""
    return [str(found) for found in tree.imports if found.name.split(".")[0] in ROOMS]


def circles(tree: Tree) -> list[str]:
    """Modules that reach themselves; an import put inside a function hides a circle but does not open it."""
    arrows: dict[str, set[str]] = {module: set() for module in tree.modules}
    for found in tree.imports:
        target = tree.target(found)
        if target in arrows and target != found.importer:
            arrows[found.importer].add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            fresh = arrows[waiting.pop()] - seen
            seen |= fresh
            waiting.extend(fresh)
        return seen

    return [module for module in sorted(arrows) if module in reached(module)]


def too_much_for_bare(tree: Tree) -> list[str]:
    """What `models` and the bare modules, and all that they import of ours, cannot find on a bare machine."""
    allowed = BARE_LIBRARIES | set(sys.stdlib_module_names) | {PACKAGE}
    bare = {module for module in tree.modules if module.split(".")[0] == "models" or module in BARE_MODULES}
    waiting, wrong = list(bare), []
    while waiting:
        module = waiting.pop()
        for found in tree.imports:
            if found.importer != module or not found.at_start:
                continue
            if found.name.split(".")[0] not in allowed:
                wrong.append(str(found))
            target = tree.target(found)
            if target in tree.modules and target not in bare:
                bare.add(target)
                waiting.append(target)
    return sorted(wrong)


def long_files(root: Path) -> list[str]:
    """Python files over the limit; one subject fits below it."""
    folders = [*ROOMS, "tests", "benchmarks"]
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in counts.items() if lines > MAX_LINES]


def deep_packages(tree: Tree) -> list[str]:
    """Modules in a folder inside a room; rooms are flat, and pyproject.toml would not ship them."""
    return [module for module in tree.modules if module.count(".") > 1]


def full_inits(tree: Tree) -> list[str]:
    """`__init__.py` files that are not empty: whatever stands there is paid for by every command."""
    return [module for module, path in tree.modules.items() if path.name == "__init__.py" and path.read_bytes().strip()]


RULES = {
    rule.__name__: rule for rule in (wrong_arrows, bare_rooms, circles, too_much_for_bare, deep_packages, full_inits)
}

# ---------------------------------------------------------------- this tree


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_this_tree_keeps_the_rule(rule):
    assert rule(read_tree(ROOT)) == []


def test_every_room_has_modules():
    assert {module.split(".")[0] for module in read_tree(ROOT).modules if "." in module} == set(ROOMS)


def test_files_are_short():
    assert long_files(ROOT) == []


def test_the_command_line_starts_without_heavy_libraries():
    program = f"import sys, {PACKAGE}.search.cli; print(*[name for name in {HEAVY_LIBRARIES} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# ---------------------------------------------------------------- the rules see what they are for


def made_tree(root: Path, files: dict[str, str]) -> Tree:
    """A tree with every room empty but for the files given."""
    for room in ROOMS:
        (root / room).mkdir()
        (root / room / "__init__.py").touch()
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return read_tree(root)


BROKEN = {
    "right": ("wrong_arrows", {"models/arch.py": "from mnet_search.spaces import space\n", "spaces/space.py": ""}),
    "right, late": (
        "wrong_arrows",
        {"studies/store.py": "def f():\n    import mnet_search.search.run\n", "search/run.py": ""},
    ),
    "right, for types": (
        "wrong_arrows",
        {"spaces/a.py": "if TYPE_CHECKING:\n    from mnet_search.studies.b import B\n", "studies/b.py": ""},
    ),
    "right, relative": ("wrong_arrows", {"models/arch.py": "from ..search.run import go\n", "search/run.py": ""}),
    "right, the room": ("wrong_arrows", {"models/arch.py": "from mnet_search import search\n"}),
    "no room": ("wrong_arrows", {"models/arch.py": "from mnet_search.other import thing\n"}),
    "bare": ("bare_rooms", {"search/run.py": "import models.factory\n"}),
    "bare, from": ("bare_rooms", {"search/run.py": "from models import factory\n"}),
    "circle": (
        "circles",
        {"models/a.py": "from mnet_search.models.b import x\n", "models/b.py": "from mnet_search.models import a\n"},
    ),
    "circle of three, late": (
        "circles",
        {
            "models/a.py": "import mnet_search.models.b\n",
            "models/b.py": "import mnet_search.models.c\n",
            "models/c.py": "def f():\n    from . import a\n",
        },
    ),
    "not bare": ("too_much_for_bare", {"models/arch.py": "import pydantic\n"}),
    "not bare, guarded": (
        "too_much_for_bare",
        {"search/data.py": "try:\n    import PIL\nexcept ImportError:\n    PIL = None\n"},
    ),
    "not bare, in a class": (
        "too_much_for_bare",
        {"search/training.py": "class A:\n    from pandas import DataFrame\n"},
    ),
    "not bare, one further": (
        "too_much_for_bare",
        {"search/data.py": "from mnet_search.search.files import f\n", "search/files.py": "import sklearn.datasets\n"},
    ),
    "folder in a room": ("deep_packages", {"models/blocks/a.py": ""}),
    "init": ("full_inits", {"models/__init__.py": "from mnet_search.models import arch\n"}),
}


@pytest.mark.parametrize(("rule", "files"), BROKEN.values(), ids=BROKEN)
def test_a_broken_tree_fails_its_rule_alone(tmp_path, rule, files):
    tree = made_tree(tmp_path, files)
    assert [name for name, check in RULES.items() if check(tree)] == [rule]


def test_a_sound_tree_keeps_every_rule(tmp_path):
    files = {
        "models/arch.py": "import math\nimport numpy as np\nfrom torch import nn\n",
        "search/data.py": "def f():\n    import PIL\nif TYPE_CHECKING:\n    import pandas\nelse:\n    import json\n",
        "search/training.py": "from mnet_search.models.arch import Arch\nfrom mnet_search.search import data\n",
        "search/run.py": "import ray\nfrom mnet_search.search.data import f\nfrom mnet_search.dashboards import app\n",
        "dashboards/app.py": "import dash\nfrom searching import models\n",
    }
    tree = made_tree(tmp_path, files)
    assert {name: check(tree) for name, check in RULES.items()} == {name: [] for name in RULES}


def test_a_long_file_is_named(tmp_path):
    made_tree(tmp_path, {"models/arch.py": "x = 1\n" * MAX_LINES, "tests/test_a.py": "x = 1\n" * (MAX_LINES + 1)})
    assert long_files(tmp_path) == [f"tests/test_a.py: {MAX_LINES + 1} lines"]
