"""Only public names of libraries are used: the next release of a library may change a private name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "expunge"
ALLOWED = {
    "_tools": "torch (2.13) has memory trackers only there; models/memory_tracker.py, the version is tested",
    "_subclasses": "torch (2.13) has no public name for fake tensors; models/memory_tracker.py",
    "_asdict": "the documented method of a named tuple",
    "_replace": "the documented method of a named tuple",
    "_parameters": "torch (2.13) cannot call a module's forward on other tensors without its hooks",
    "_is_mkldnn_bf16_supported": "torch (2.13) has no public test for a CPU with native bfloat16",
}
LIBRARIES = ("transformers", "accelerate", "peft", "torch")


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(tree: ast.Module) -> set[str]:
    """The private names that a file defines: functions, classes, fields, attributes of self."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            names.add(node.attr)
    return names


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def library_of(base: ast.expr, tree: ast.Module) -> str:
    """The library that a class's base comes from, by name or as a module's attribute; empty for any other."""
    root = ast.unparse(base).split("[")[0].split(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            brought = {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            brought = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        else:
            continue
        library = brought.get(root, "").split(".")[0]
        if library in LIBRARIES:
            return library
    return ""


def derived_from(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, list[str]]]:
    """Each class with those of its bases that a library other than torch defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [base for base in node.bases if library_of(base, tree) not in ("", "torch")]
            if bases:
                yield node, [ast.unparse(base) for base in bases]


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each use of a private name that the same file does not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not of_self(node):
            if node.attr not in own:
                yield node.lineno, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr", "hasattr")
        ):
            for argument in node.args[1:2]:
                if (
                    isinstance(argument, ast.Constant)
                    and is_private(str(argument.value))
                    and argument.value not in own
                ):
                    yield node.lineno, str(argument.value)


def test_no_private_name_of_a_library_is_used() -> None:
    used = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path, tree in trees().items()
        for line, name in private_uses(tree, own_names(tree) | ALLOWED.keys())
    ]
    assert used == []


def test_no_class_derives_from_a_trainer_and_callbacks_override_public_events() -> None:
    for path, tree in trees().items():
        for node, bases in derived_from(tree):
            assert bases == ["TrainerCallback"], f"{path}: {node.name} derives from {bases}"
            overridden = [
                item.name for item in node.body if isinstance(item, ast.FunctionDef) and is_private(item.name)
            ]
            assert overridden == [], f"{path}: {node.name} overrides {overridden}"


@pytest.mark.parametrize(
    "text",
    [
        "import transformers\nclass A(transformers.Trainer): ...",
        "from transformers import Trainer as T\nclass A(T): ...",
        "from accelerate import Accelerator\nclass A(Accelerator): ...",
    ],
)
def test_each_way_to_derive_is_found(text: str) -> None:
    assert [bases for _, bases in derived_from(ast.parse(text))]


@pytest.mark.parametrize(
    "text",
    [
        "from transformers.trainer import _is_peft_model",
        "import accelerate._private",
        "def f(trainer):\n    trainer._tr_loss += 1",
        "def f(accelerator):\n    accelerator.gradient_state._set_sync_gradients(True)",
        "def f(x):\n    return getattr(x, '_n_gpu')",
        "def f(trainer):\n    trainer._save('x')",
        "def f(m):\n    m._parameters.clear()",
    ],
)
def test_each_kind_of_use_is_found(text: str) -> None:
    assert list(private_uses(ast.parse(text), set()))
