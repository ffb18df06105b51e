"""The shape of the repository: who imports whom, what an import costs, what every op must have."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tileproof.dsl import ALL, load_library

ROOT = Path(__file__).parents[1]
FOLDERS = ("dsl", "kernels", "verify", "codegen", "sanitizer", "runtime", "model")

# Folder → the folders whose modules it may import. `runtime` runs in production, with torch and
# apache-tvm-ffi alone; `tileproof` is the import name, the CLI and the demo, which use everything.
MAY_IMPORT = {
    "dsl": set(),
    "kernels": {"dsl"},
    "verify": {"dsl", "codegen", "runtime"},  # of the runtime, its cache
    "codegen": {"dsl", "runtime"},
    "sanitizer": {"dsl", "codegen", "runtime"},
    "runtime": set(),
    "model": {"dsl", "kernels", "runtime", "codegen"},
}
TOOLS = ("tilelang", "tvm", "z3")


def _modules(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(absolute module name, whether inside a function) of every import that runs."""
    package = ["tileproof", *path.relative_to(ROOT).parts[:-1]]
    found = []

    def visit(node: ast.AST, late: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, late) for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *filter(None, [child.module])])
                found.append((module, late))
                found.extend((f"{module}.{alias.name}", late) for alias in child.names)
            visit(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(path.read_text()), False)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_follow_the_direction(folder: str) -> None:
    wrong = []
    for path in _modules(folder):
        for name, _ in _imports(path):
            parts = name.split(".")
            bare = parts[0] in FOLDERS
            allowed = {folder} | MAY_IMPORT[folder]
            ours = parts[0] == "tileproof" and len(parts) > 1 and parts[1] in FOLDERS
            if bare or (ours and parts[1] not in allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_heavy_tools_are_imported_late(folder: str) -> None:
    """TileLang and Z3 only inside functions; the runtime not at all."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(folder)
        for name, late in _imports(path)
        if name.split(".")[0] in TOOLS
        and (folder == "runtime" or (not late and folder not in ("verify", "codegen")))
    ]
    assert not wrong


def _python(code: str, *path: Path) -> str:
    """Standard output of a fresh interpreter that has `path` first on its module path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_tileproof_costs_nothing() -> None:
    code = (
        "import sys, tileproof\n"
        "heavy = 'torch numpy tilelang tvm tvm_ffi z3 transformers rich typer'.split()\n"
        "print([m for m in heavy if m in sys.modules], tileproof.__version__)"
    )
    assert _python(code).startswith("[] 0.")


def test_the_runtime_needs_no_compiler_and_no_solver() -> None:
    code = (
        "import sys, tileproof.runtime\n"
        "heavy = 'tilelang tvm z3 transformers tileproof.dsl tileproof.codegen'.split()\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert _python(code) == "[]"


def test_our_kernels_folder_does_not_shadow_hugging_faces_package(tmp_path: Path) -> None:
    """With the checkout first on the path, transformers must still find HF's `kernels`.

    It imports that package as soon as its metadata is installed; were `kernels/` here a regular
    package, it would win and transformers' DeepSeek-V4 could not be imported.
    """
    assert not (ROOT / "kernels" / "__init__.py").exists()
    fake = tmp_path / "kernels"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "class Anything:\n"
        "    def __init__(self, *args, **kwargs): pass\n"
        "    def __call__(self, cls, *args, **kwargs): return cls\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return Anything\n"
    )
    info = tmp_path / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (info / "RECORD").write_text("kernels/__init__.py,,\n")
    code = (
        "from transformers.utils import is_kernels_available\n"
        "assert is_kernels_available(), 'the fake package was not seen, so this proves nothing'\n"
        "import transformers.models.deepseek_v4.modeling_deepseek_v4\n"
        "import kernels, tileproof.kernels.norm\n"
        "print(kernels.__file__)"
    )
    assert _python(code, ROOT, tmp_path) == str(fake / "__init__.py")


OPS = load_library()


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_complete(name: str) -> None:
    """Nothing is declared that is not built for every GPU, tested, and described."""
    op = OPS[name]
    family, stem = name.split("/")
    assert callable(op.reference)
    assert {"tiny", "flash", "pro", "edge"} <= set(op.shapes)
    for shape in op.shapes:
        specializations, points = op.shape_set(shape)
        assert specializations
        assert points
    assert {arch for v in op.variants for arch in v.archs} == set(ALL)
    assert (ROOT / "tests" / "kernels" / family / f"test_{stem}.py").is_file()
    assert any(name in page.read_text() for page in (ROOT / "docs").rglob("*.md"))


def test_no_module_is_importable_twice() -> None:
    """`kernels.mhc` and `tileproof.kernels.mhc` would be two modules with two registries."""
    files = [p for p in ROOT.rglob("*.py") if not {".venv", "build"} & set(p.parts)]
    bare = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module, _ in _imports(path)
        if module.split(".")[0] in FOLDERS
    ]
    assert not bare, "import these as tileproof.<folder>"


def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    """Modules of every folder, and the files that are compiled at run time."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    copy = tmp_path / "source"
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*wheel, "-w", str(tmp_path), str(copy)], check=True)
    (built,) = tmp_path.glob("tileproof-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(installed)
    code = """
        import importlib, pathlib, sys
        import tileproof
        root = pathlib.Path(tileproof.__file__).parent
        assert root.parent == pathlib.Path(sys.argv[1]), root
        names = "cli demo dsl kernels.mhc kernels.norm verify codegen.build runtime model "
        names += "verify.props verify.ptx verify.field verify.order"
        for name in names.split():
            found = importlib.import_module(f"tileproof.{name}").__file__
            assert pathlib.Path(found).is_relative_to(root), found
        headers = {p.name for p in (root / "runtime").rglob("*.h")}
        sources = {p.name for p in (root / "runtime").rglob("*.cpp")}
        assert {"driver.h", "launcher.h", "all.h", "reduce.h"} <= headers, headers
        assert {"launcher.cpp", "cuda_driver.cpp", "scheduler.cpp"} <= sources, sources
        assert tileproof.dsl.get("mhc/post").specialize(N=4, D=64).args
    """
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(installed)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
