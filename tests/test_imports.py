"""The arrows of the house: who may import whom, and what must stay off the way to --help."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"data", "models"}
PARTS = {"learning", "search", "evaluation", "exporting", "tracking", "live", "figures"}
FILES = sorted(path for folder in ("fer_lab", "kernels") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, except for types."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    """data, learning, figures …; an entry point is its own part."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_against_the_arrows(path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("fer_lab.")} - {part(path)}
    if path.relative_to(ROOT).parts[0] == "kernels":
        assert not ours
    elif part(path) in LEAVES:
        allowed = {"faces"} if part(path) == "models" else set()
        assert not ours - allowed, f"a leaf imports {ours}"
    elif part(path) in PARTS:
        assert ours <= LEAVES, f"{part(path)} imports {ours - LEAVES}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_mlflow_and_optuna_stay_in_their_rooms(path):
    outside = {name.split(".")[0] for name in imports(path)}
    if part(path) not in ("tracking", "bench", "benchmarks"):
        assert "mlflow" not in outside
    if part(path) not in ("search", "benchmarks"):
        assert "optuna" not in outside


def test_kernels_and_fer_lab_are_the_repositorys_own():
    import fer_lab
    import kernels

    assert Path(fer_lab.__file__).is_relative_to(ROOT)
    assert Path(kernels.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("words", [("--help",), ("data=jaffe",), ("modell=small",)])
def test_help_and_errors_of_config_and_data_come_without_the_heavy_imports(words):
    script = (
        "import sys, runpy; sys.argv = ['train', *sys.argv[1:]]\n"
        "try: runpy.run_module('fer_lab.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pytorch_lightning', 'mlflow', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
