"""Only public names of libraries are used: a private one is a debt that the library's next release calls in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "expunge"
ALLOWED = {
    "_tools": "torch (2.13) has its memory trackers in torch.distributed._tools alone; models/memory_tracker.py, pinned by a test",
    "_subclasses": "torch (2.13) has no public name for fake tensors; models/memory_tracker.py",
    "_asdict": "the documented method of a named tuple",
    "_is_mkldnn_bf16_supported": "torch (2.13) has no public name for whether a CPU computes in bfloat16 by itself",
}
LIBRARIES = ("transformers", "accelerate", "peft", "torch")


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(found: dict[Path, ast.Module]) -> set[str]:
    """The private names that the house itself defines: functions, classes, constants, fields, attributes of self."""
    names: set[str] = set()
    for tree in found.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            ):
                names.add(node.attr)
    return names


def imported_from(tree: ast.Module) -> dict[str, str]:
    """Local name -> the library module it was imported from."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES
        for alias in node.names
    }


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, what) of each use of a private name that is not the house's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
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
    found = trees()
    own = own_names(found)
    used = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path, tree in found.items()
        for line, name in private_uses(tree, own | ALLOWED.keys())
    ]
    assert used == []


def test_no_class_derives_from_a_trainer_and_callbacks_override_public_events() -> None:
    for path, tree in trees().items():
        names = imported_from(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in names]
            libraries = {names[base].split(".")[0] for base in bases} - {"torch"}
            if not libraries:
                continue
            assert bases == ["TrainerCallback"], f"{path}: {node.name} derives from {bases}"
            overridden = [
                item.name for item in node.body if isinstance(item, ast.FunctionDef) and is_private(item.name)
            ]
            assert overridden == [], f"{path}: {node.name} overrides {overridden}"


@pytest.mark.parametrize(
    "text",
    [
        "from transformers.trainer import _is_peft_model",
        "import accelerate._private",
        "def f(trainer):\n    trainer._tr_loss += 1",
        "def f(accelerator):\n    accelerator.gradient_state._set_sync_gradients(True)",
        "def f(x):\n    return getattr(x, '_n_gpu')",
    ],
)
def test_the_test_sees_each_kind_of_use(text: str) -> None:
    assert list(private_uses(ast.parse(text), set()))
