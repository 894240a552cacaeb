"""Core knows no modality, a modality knows only core, tools know all; and importing is free of side effects."""

import ast
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY = {
    "core": {"core"},
    "video": {"core", "vision", "video"},
    "multimodal": {"core", "multimodal", "vision", "video", "audio", "text"},
}
ANYWHERE = {"core": {"torch", "numpy", "safetensors"}}  # beside the standard library and partwhole
AT_THE_TOP = {"torch", "numpy", "safetensors"}  # the rest is imported where it is used
KERNELS = {"ops_triton": {"triton"}}  # files that are themselves only imported inside functions
FILES = sorted((ROOT / "packages").glob("*/src/**/*.py"))


def imports(tree):
    """(module, whether it is imported when the file is) for every import; type checking does not count."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= set(map(id, ast.walk(node)))
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", id(node) not in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT / "packages")))
def test_imports_point_down_and_heavy_ones_wait(file):
    package = file.relative_to(ROOT / "packages").parts[0]
    for module, top in imports(ast.parse(file.read_text())):
        root, *rest = module.split(".")
        if root == "partwhole":
            assert rest, f"{file}: import partwhole says nothing"
            assert not top or rest[-1] not in KERNELS, f"{file} imports {module} when it is imported itself"
            assert rest[0] in MAY.get(package, {"core", package}), f"{file} imports {module}"
        elif root not in sys.stdlib_module_names:
            if package in ANYWHERE:
                assert root in ANYWHERE[package], f"{file} imports {module}: core has three dependencies"
            assert not top or root in AT_THE_TOP | KERNELS.get(file.stem, set()), (
                f"{file} imports {module} when it is imported itself"
            )


def test_the_namespace_has_no_init():
    assert not list((ROOT / "packages").glob("*/src/partwhole/__init__.py"))


def test_no_file_is_longer_than_400_lines():
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
    assert not long


def test_what_text_and_messages_name_in_core_is_there():
    """A message that says core.masks.hide, say, must lead somewhere after hide has moved."""
    pages = [*FILES, *(f for at in ("tools/**/*.py", "examples/*.py", "*.md", "docs/*.md") for f in ROOT.glob(at))]
    gone = []
    for page in pages:
        for name in set(re.findall(r"\bcore(?:\.[a-zA-Z_]\w*)+", page.read_text())):
            try:
                pkgutil.resolve_name(f"partwhole.{name}")
            except (ImportError, AttributeError) as error:
                gone.append(f"{page.relative_to(ROOT)}: {name} ({error})")
    assert not gone


def test_S8_importing_core_changes_nothing_and_takes_less_than_half_a_second():
    code = """
import json, logging, random, signal, sys, time, warnings
import numpy, torch
def state():
    return {
        "torch": torch.get_rng_state().sum().item(), "random": hash(random.getstate()),
        "numpy": hash(numpy.random.get_state()[1].tobytes()), "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "handlers": len(logging.root.handlers),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "warnings": len(warnings.filters), "matmul": torch.get_float32_matmul_precision(),
        "excepthook": sys.excepthook is sys.__excepthook__, "path": len(sys.path),
    }
before, began = state(), time.process_time()
import partwhole.core
free = sorted(m for m in sys.modules if m.startswith("partwhole."))
import partwhole.core.fit, partwhole.core.methods, partwhole.core.losses, partwhole.core.checkpoint
took = time.process_time() - began
from partwhole.core import load_encoder
print(json.dumps({"same": before == state(), "took": took, "free": free}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["same"]
    assert found["took"] < 0.5
    assert found["free"] == ["partwhole.core"]
