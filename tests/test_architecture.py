from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pldcli
from pldcli import cli

ROOT = Path(pldcli.__file__).parents[1]
MODULES = sorted((ROOT / "pldcli").rglob("*.py"))
PACKAGES = sorted(path.parent for path in (ROOT / "pldcli").glob("*/__init__.py"))

MOST_LINES, MOST_LINES_OF_A_PACKAGE = 530, 2500
LARGE_PACKAGES = ("tasks",)


def test_imports_point_down_only() -> None:
    program = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_only_three_modules_talk_to_torch_distributed() -> None:
    users = [path.name for path in MODULES if any(name.startswith("torch.distributed") for name in _imported(path))]
    assert set(users) == {"runtime.py", "launcher.py", "sharding.py"}


def test_nothing_can_run_code_that_was_read() -> None:
    for path in MODULES:
        assert not {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & _imported(path), path


def test_modules_say_what_they_hold_and_export() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        exported = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
        assert exported or path.name in ("__init__.py", "__main__.py"), path


def test_no_file_and_no_package_grows_beyond_what_a_reader_holds() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path.name: count for path, count in lines.items() if count > MOST_LINES} == {}
    sizes = {package.name: sum(count for path, count in lines.items() if package in path.parents) for package in PACKAGES}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES_OF_A_PACKAGE and name not in LARGE_PACKAGES} == {}


def test_each_file_of_commands_is_one_subcommand_or_one_group() -> None:
    files = {f"pldcli.commands.{path.stem}" for path in MODULES if path.parent.name == "commands" and path.stem != "__init__"}
    registered: dict[str, set[str]] = {}
    for entry in cli.COMMANDS:
        registered.setdefault(entry.function.__module__, set()).add(entry.name.partition(" ")[0].replace("-", "_"))
    assert registered == {name: {name.rpartition(".")[2]} for name in files}


def test_every_folder_of_tests_names_a_package() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {package.name for package in PACKAGES}


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
