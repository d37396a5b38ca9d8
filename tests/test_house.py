"""The house's own rules: floors, budgets, exact names, light imports."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest

import sigak
from sigak import models
from sigak.cli import VERBS
from sigak.recipe import Options, Recipe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sigak"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
IDS = {"ids": lambda path: str(path.relative_to(ROOT))}

LONGEST_FILE, LONGEST_BODY, MOST_ARGUMENTS, MOST_FIELDS = 500, 50, 8, 26

# Exceptions to the budgets, "file:function". They may only shrink: one that is not needed fails.
LONG_FILES: set[str] = set()
LONG_BODIES: set[str] = set()
MANY_ARGUMENTS: set[str] = set()

HEAVY = ("torch", "torchvision", "timm", "numpy", "cv2", "PIL", "accelerate", "matplotlib")


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def fresh_python(code, *flags):
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ------------------------------------------------------------------ floors and imports


def test_imports_only_go_down_the_floors():
    command = "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_import_sigak_is_light_and_silent():
    heavy = f"import sys, sigak; print(sorted(set(sys.modules) & set({HEAVY})))"
    assert fresh_python(heavy, "-W", "error").strip() == "[]"


def test_help_loads_no_torch():
    code = f"""
import contextlib, io, sys
from sigak.cli import VERBS, main
for words in [["--help"], ["--version"], [], *([verb, "--help"] for verb in VERBS)]:
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        main(words)
    assert shown.getvalue().strip(), words
print(sorted(set(sys.modules) & set({HEAVY})))
"""
    assert fresh_python(code, "-W", "error").strip() == "[]"


HELP = """
import contextlib
from sigak.cli import main
with contextlib.suppress(SystemExit):
    main(["--help"])
"""


def test_help_is_quick():
    def seconds(code):
        begun = time.perf_counter()
        fresh_python(code)
        return time.perf_counter() - begun

    fresh_python("import sigak.cli")  # compile once
    # The share of a busy machine is taken off with an interpreter that does nothing.
    best, idle = min(seconds(HELP) for _ in range(8)), min(seconds("") for _ in range(8))
    assert best < 0.3 or best - idle < 0.2


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize("path", FILES, **IDS)
def test_no_file_is_too_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert (lines > LONGEST_FILE) == (path.name in LONG_FILES), f"{lines} lines"


def functions(path):
    """(qualified name, node, whether it is a constructor) of every function of a file."""
    found = []

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                if not isinstance(child, ast.ClassDef):
                    found.append((f"{path.name}:{name}", child))
            walk(child, name)

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def body_lines(node):
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def arguments(node):
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([a for a in listed if a.arg not in ("self", "cls")])


@pytest.mark.parametrize("path", FILES, **IDS)
def test_no_function_is_too_long(path):
    long = {name for name, node in functions(path) if body_lines(node) > LONGEST_BODY}
    assert long == {name for name in LONG_BODIES if name.startswith(f"{path.name}:")}


@pytest.mark.parametrize("path", FILES, **IDS)
def test_no_function_takes_too_much(path):
    many = {
        name
        for name, node in functions(path)
        if arguments(node) > MOST_ARGUMENTS and not name.endswith(".__init__")
    }
    assert many == {name for name in MANY_ARGUMENTS if name.startswith(f"{path.name}:")}


def test_every_exception_names_something():
    known = {path.name for path in FILES}
    listed = LONG_FILES | {name.split(":")[0] for name in LONG_BODIES | MANY_ARGUMENTS}
    assert listed <= known


def test_the_recipe_is_small_and_explained():
    assert len(fields(Recipe)) <= MOST_FIELDS
    for kind in (Recipe, Options, *(kind for kinds in VERBS.values() for kind in kinds)):
        for field in fields(kind):
            assert field.metadata["help"].strip(), f"{kind.__name__}.{field.name}"


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("path", FILES, **IDS)
def test_all_is_exact(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    if not lists:
        assert not defined or any(part.startswith("_") for part in path.parts[-1:]), sorted(defined)
        return
    listed = ast.literal_eval(lists[0])
    assert len(listed) == len(set(listed))
    assert defined <= set(listed), f"not in __all__: {sorted(defined - set(listed))}"
    module = importlib.import_module(module_name(path))
    assert [name for name in listed if not hasattr(module, name)] == []


def test_the_public_table_is_exact():
    assert sorted(sigak.__all__) == sigak.__all__ == sorted(sigak._PUBLIC)
    assert set(sigak.__all__) <= set(dir(sigak))
    for name, (module, attribute) in sigak._PUBLIC.items():
        value = getattr(sigak, name)
        assert value is getattr(importlib.import_module(module), attribute)
        assert inspect.getdoc(value), name
    assert sigak.__version__ == version("sigak")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sigak.nonsense


def test_type_checkers_see_the_public_table():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.asname or a.name: (i.module, a.name) for i in block.body for a in i.names}
    assert seen == sigak._PUBLIC


def test_every_family_is_in_the_table_of_contents():
    files = {p.stem for p in (SOURCE / "models").glob("*.py") if not p.name.startswith("_")}
    assert files == set(models.FAMILIES)


def test_every_test_folder_mirrors_a_room():
    for folder in {path.parent for path in TESTS} - {ROOT / "tests"}:
        room = SOURCE / folder.relative_to(ROOT / "tests")
        assert room.is_dir() or room.with_suffix(".py").exists(), folder


# ------------------------------------------------------------------ habits


@pytest.mark.parametrize("path", FILES, **IDS)
def test_habits(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "utils" not in path.stem
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert imported.isdisjoint({"ultralytics", "albumentationsx", "pickle"})
    inside = path.relative_to(SOURCE).as_posix()
    doors = {
        "cv2": inside.startswith("io/")
        or inside in ("ops/warp.py", "ops/outlines.py", "draw.py", "data/scenes.py"),
        "PIL": inside.startswith(("io/", "report/")) or inside == "draw.py",
        "timm": inside.startswith("models/"),
        "segmentation_models_pytorch": inside == "models/smp_nets.py",
        "accelerate": inside == "training.py",
        "urllib": inside == "io/download.py",
        "onnx": inside.startswith("runtime/") or inside == "io/onnx_weights.py",
        "av": inside == "io/video.py",
        "hotcoco": inside in ("metrics/_coco.py", "metrics/files.py", "ops/outlines.py"),
        "onnxruntime": inside.startswith("runtime/"),
        "openvino": inside.startswith("runtime/"),
        "nibabel": inside == "io/volumes.py",
    }
    for name, allowed in doors.items():
        assert allowed or name not in imported, f"{name} has no door here"


def test_torch_files_are_only_read_without_their_code():
    calls = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                calls.append(path.name)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", path
    assert calls  # the rule is about something


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert numbers[0] == version("sigak")


def test_the_project_speaks_of_itself_alone():
    forbidden = re.compile("|".join(["/wo" + "rk/", r"\bfar" + "m" + r"\b"]))
    kinds = (".py", ".md", ".toml", ".json", ".txt", ".yml", ".yaml", ".cfg", "")
    skipped = {"build", "dist", "runs", "shared", "__pycache__"}
    for place, folders, names in os.walk(ROOT):
        kept = (f for f in folders if f not in skipped and (f == ".ci" or not f.startswith(".")))
        folders[:] = [f for f in kept if not f.endswith(".egg-info")]
        for path in (Path(place, name) for name in names):
            if path.suffix in kinds:
                found = forbidden.search(path.read_text(encoding="utf-8", errors="ignore"))
                assert not found, f"{path}: {found.group()}"
