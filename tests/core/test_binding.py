"""The one binder: every type with good and bad values, options, switches, forms of source; no imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.core.annotations import Type, read_type, type_of, wrong
from expunge.core.binding import Binder, Option, bound_alone
from expunge.core.errors import UserError
from expunge.core.handlers import REQUIRED, read_signature

CHOICES = '''
from enum import Enum
from typing import Literal

import a_package_that_is_nowhere

Form = Literal["kl", "reverse"]


class Unit(str, Enum):
    STEP = "step"
    EPOCH = "epoch"


class Table:
    """A table."""
'''
MODULE = '''
from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

from expunge.core import ranges
from expunge.core.ranges import AtLeast, Below, Decay, Share

import choices_for_tests as choices
from choices_for_tests import Form as Shape
from choices_for_tests import Unit

if TYPE_CHECKING:
    from choices_for_tests import Table

Alias = Shape
HALF = 0.5


def mark(**keywords):
    return lambda function: function


@mark(positive=("slope", "cap"), at_least_0=("offset",), refused={"form=other": "it needs two models"})
def example(
    table: Table,
    pair: tuple[Table, ...],
    *,
    needed: int,
    whole: int = 1,
    slope: float = 1.0,
    offset: float = 0.0,
    cap: float | None = None,
    flag: bool = False,
    word: str = "a",
    maybe: Optional[str] = None,
    either: Union[int, str] = 0,
    form: Shape = "kl",
    again: Alias = "kl",
    dotted: choices.Form = "kl",
    number: Literal[1, 2, None] = 1,
    unit: Unit = "step",
    betas: tuple[float, float] = (0.9, 0.99),
    decays: tuple[Decay, Decay] = (0.9, 0.99),
    names: Sequence[str] = (),
    either_names: str | list[str] = "",
    numbers: list[int] = (),
    section: Mapping[str, Any] | None = None,
    share: Share = 0.5,
    ranged: Annotated[int, AtLeast(2), Below(5)] = 2,
    dotted_range: typing.Annotated[float, ranges.Above(1)] = 2.0,
    quoted: "int | None" = None,
    code: float = HALF,
    anything=None,
    unread: Any = None,
    late: Nowhere = None,
):
    """Has every annotation that can be read."""


def open_one(*, first: int = 1, **rest):
    """Takes any keyword."""


second_name = example
'''
HANDLER = "module_for_tests:example"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "choices_for_tests.py").write_text(CHOICES)
    (tmp_path / "module_for_tests.py").write_text(MODULE)
    (tmp_path / "exports_for_tests.py").write_text("from module_for_tests import second_name as exported\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def faults(handler: str = HANDLER, **given: Any) -> list[str]:
    binder = Binder()
    binder.bind("key", read_signature(handler), {"needed": 1, **given})
    return [str(fault) for fault in binder.faults]


GOOD: dict[str, list[Any]] = {
    "needed": [0, -3],
    "whole": [0, 10**9],
    "slope": [1, 0.5, 1e-30],
    "offset": [0, 0.0, 3],
    "cap": [None, 0.1],
    "flag": [True, False],
    "word": ["", "b", "null"],
    "maybe": [None, "x"],
    "either": [3, "x"],
    "form": ["kl", "reverse"],
    "again": ["reverse"],
    "dotted": ["reverse"],
    "number": [1, 2, None],
    "unit": ["epoch"],
    "betas": [[0, 1], (0.5, 3)],
    "decays": [[0, 0.5]],
    "names": [["a"], ("a", "b")],
    "either_names": ["a", ["a"]],
    "numbers": [[1, 2]],
    "section": [None, {}, {"a": 1}],
    "share": [1, 0.01],
    "ranged": [2, 4],
    "dotted_range": [1.5],
    "quoted": [None, 3],
    "code": [2],
    "anything": [None, [], "x"],
    "unread": [None, 3],
    "late": [None, "x"],
}
BAD: list[tuple[str, Any, str]] = [
    ("needed", 1.5, "needed=1.5: must be a whole number"),
    ("needed", True, "needed=True: must be a whole number"),
    ("whole", None, "whole=null: must be a whole number"),
    ("whole", 1.0, "whole=1.0: must be a whole number"),
    ("slope", "abc", "slope=abc: must be a number above 0"),
    ("slope", "0.1", "slope=0.1: must be a number above 0"),
    ("slope", 0, "slope=0: must be a number above 0"),
    ("slope", None, "slope=null: must be a number above 0"),
    ("slope", True, "slope=True: must be a number above 0"),
    ("slope", float("inf"), "slope=inf: must be a finite number above 0"),
    ("slope", float("nan"), "slope=nan: must be a finite number above 0"),
    ("offset", -1, "offset=-1: must be a number of at least 0"),
    ("cap", 0, "cap=0: must be a number above 0 or null"),
    ("flag", 1, "flag=1: must be true or false"),
    ("flag", "true", "flag=true: must be true or false"),
    ("flag", None, "flag=null: must be true or false"),
    ("word", 3, "word=3: must be a string"),
    ("word", None, "word=null: must be a string"),
    ("maybe", 3, "maybe=3: must be a string or null"),
    ("either", 1.5, "either=1.5: must be a whole number or a string"),
    ("form", "reverze", "form=reverze: must be one of 'kl', 'reverse'\n  -> did you mean 'reverse'?"),
    ("form", "other", "form=other: it needs two models\n  -> the default is 'kl'"),
    ("again", "x", "again=x: must be one of 'kl', 'reverse'"),
    ("dotted", "x", "dotted=x: must be one of 'kl', 'reverse'"),
    ("number", 3, "number=3: must be one of 1, 2, None"),
    ("number", True, "number=True: must be one of 1, 2, None"),
    ("unit", "steps", "unit=steps: must be one of 'step', 'epoch'\n  -> did you mean 'step'?"),
    ("betas", 0.9, "betas=0.9: must be a list of 2 items, each a number"),
    ("betas", [0.9], "betas=[0.9]: must be a list of 2 items, each a number"),
    ("betas", [0.9, "a"], "betas=[0.9, 'a']: must be a list of 2 items, each a number"),
    (
        "decays",
        [0.9, 1.0],
        "decays=[0.9, 1.0]: must be a list of 2 items, each a number of at least 0 and below 1",
    ),
    ("names", "a", "names=a: must be a list of strings"),
    ("names", [], "names=[]: must be a list of strings"),
    ("names", [1], "names=[1]: must be a list of strings"),
    ("either_names", 3, "either_names=3: must be a string or a list of strings"),
    ("numbers", ["a"], "numbers=['a']: must be a list, each a whole number"),
    ("section", 3, "section=3: must be a section of keys and values or null"),
    ("share", 0, "share=0: must be a number above 0 and at most 1"),
    ("share", 1.1, "share=1.1: must be a number above 0 and at most 1"),
    ("ranged", 5, "ranged=5: must be a whole number of at least 2 and below 5"),
    ("dotted_range", 1, "dotted_range=1: must be a number above 1"),
    ("quoted", "x", "quoted=x: must be a whole number or null"),
    ("code", "x", "code=x: must be a number\n  -> the default is HALF"),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values]
)
def test_a_value_of_its_type_is_bound(name: str, value: Any) -> None:
    assert faults(**{name: value}) == []


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_value_of_another_type_is_a_fault(name: str, value: Any, message: str) -> None:
    (found,) = faults(**{name: value})
    assert found.startswith(f"key.{message}")


def test_every_parameter_of_the_example_is_tried() -> None:
    assert set(GOOD) == set(read_signature(HANDLER).keyword)
    assert "module_for_tests" not in sys.modules
    assert "choices_for_tests" not in sys.modules


def test_positional_parameters_have_the_class_of_their_annotation() -> None:
    """A metric reads one table or several."""
    signature = read_signature(HANDLER)
    table = Type("choices_for_tests:Table")
    assert type_of(signature, "table") == table
    assert type_of(signature, "pair") == Type("list", (table,))
    binder = Binder()
    binder.bind("key", signature, {"needed": 1, "table": "view", "tabel": 3}, positional=("table",))
    (fault,) = binder.faults
    assert "did you mean 'table'" in fault.hint
    binder.bind("other", signature, {"needed": 1}, positional=("table",))
    assert binder.faults[-1].message == "other.table is not given, and example has no default for it"


def test_every_fault_is_reported_with_what_is_missing_and_what_is_unknown() -> None:
    with pytest.raises(UserError) as error:
        bound_alone(lambda binder: binder.bind("key", read_signature(HANDLER), {"sloep": 1, "flag": 3}))
    messages = [fault.message for fault in error.value.faults]
    assert messages == [
        "key.sloep=1: example takes no 'sloep'",
        "key.flag=3: must be true or false",
        "key.needed is not given, and example has no default for it",
    ]
    assert error.value.faults[0].hint.startswith(
        "did you mean 'slope'? it takes: needed (required), whole (1)"
    )
    assert faults(needed=None) == [
        "key.needed is not given, and example has no default for it\n  -> add key.needed=VALUE"
    ]
    assert faults(slope="???") == ["key.slope is not given\n  -> add key.slope=VALUE"]


def test_a_bound_function_has_its_keywords_and_its_options() -> None:
    binder = Binder()
    options = {"ratio": Option(0.5, Type("float")), "seed": Option(REQUIRED, Type("int"))}
    given = {"needed": 3, "betas": [0, 1], "seed": 4}
    bound = binder.bind(
        "key", read_signature(HANDLER), given, options=options, switches={"word": "b", "whole": 7}
    )
    assert bound is not None
    assert bound is binder.bound["key"]
    assert bound.kwargs == {"word": "b", "whole": 7, "needed": 3, "betas": (0, 1)}
    assert bound.options == {"ratio": 0.5, "seed": 4}
    assert bound.given == ("needed", "betas", "seed")
    assert (bound.value("word"), bound.value("form"), bound.name, bound.handler) == (
        "b",
        "kl",
        "example",
        HANDLER,
    )
    assert binder.bind("bad", read_signature(HANDLER), {"needed": 3, "ratio": "x"}, options=options) is None
    assert [fault.message for fault in binder.faults] == [
        "bad.ratio=x: must be a number",
        "bad.seed is not given, and example has no default for it",
    ]
    assert "bad" not in binder.bound


def test_switches_are_checked_under_their_own_key_and_lose_to_what_is_given() -> None:
    binder = Binder()
    signature = read_signature(HANDLER)
    bound = binder.bind("key", signature, {"needed": 1, "slope": 2}, switches={"slope": -1})
    assert bound is not None
    assert bound.kwargs["slope"] == 2
    binder.bind("key", signature, {"needed": 1}, switches={"slope": -1, "sloop": 3})
    assert [fault.message for fault in binder.faults] == [
        "compat.switches.example.slope=-1: must be a number above 0",
        "compat.switches.example.sloop=3: example takes no 'sloop'",
    ]


def test_a_function_with_open_keywords_takes_any() -> None:
    binder = Binder()
    bound = binder.bind("key", read_signature("module_for_tests:open_one"), {"other": 1})
    assert bound is not None
    assert bound.kwargs == {"other": 1}
    assert binder.bind("key", read_signature("module_for_tests:open_one"), {"first": "x"}) is None


@pytest.mark.parametrize(
    "node", ["short", "SHORT", HANDLER, {"handler": "short", "needed": 2}, "exports_for_tests:exported"]
)
def test_a_choice_is_a_short_name_a_handler_or_a_section(node: Any) -> None:
    binder = Binder()
    given = node if isinstance(node, dict) else {"handler": node, "needed": 2}
    bound = binder.choose("key", given, {"short": HANDLER}, "thing")
    assert bound is not None
    assert (bound.handler, bound.kwargs) == (HANDLER, {"needed": 2})
    assert binder.choose("key", "module_for_tests:open_one", {}, "thing") is not None


@pytest.mark.parametrize(
    ("node", "message", "hint"),
    [
        (
            "shrot",
            "key=shrot: unknown thing 'shrot'",
            "did you mean 'short'? known: short, or module:function",
        ),
        ({"handler": "shrot"}, "key.handler=shrot: unknown thing 'shrot'", "did you mean 'short'"),
        (
            {"needed": 1},
            "key.handler is not given: there is no thing",
            "set key.handler to one of short, or module:function",
        ),
        ("module_for_tests:exampel", "unknown name in module_for_tests 'exampel'", "did you mean 'example'"),
        ("module_for_test:example", "there is no module 'module_for_test'", "PYTHONPATH"),
        ("module_for_tests:HALF", "module_for_tests:HALF is not a function or class", "names a function"),
    ],
)
def test_a_choice_that_does_not_exist_is_a_fault(node: Any, message: str, hint: str) -> None:
    binder = Binder()
    assert binder.choose("key", node, {"short": HANDLER}, "thing") is None
    (fault,) = binder.faults
    assert message in fault.message
    assert hint in fault.hint


def test_a_function_that_cannot_be_called_as_that_kind_of_thing_is_refused() -> None:
    binder = Binder()
    assert binder.find("key", HANDLER, {}, "rule", places=0) is None
    (fault,) = binder.faults
    assert fault.message == f"key={HANDLER}: example is not a rule"
    assert fault.hint == "it has 2 required positional parameters; a rule has 0"
    assert binder.find("key", HANDLER, {}, "pair", places=2) is not None


def test_a_bound_function_is_loaded_and_an_import_error_is_reported() -> None:
    binder = Binder()
    bound = binder.bind("key", read_signature(HANDLER), {"needed": 1})
    assert bound is not None
    with pytest.raises(UserError, match=r"needs the module 'a_package_that_is_nowhere'"):
        bound.load()
    plain = binder.bind("key", read_signature("expunge.core.errors:nearest"), {})
    assert plain is not None
    from expunge.core.errors import nearest

    assert plain.load() is nearest


def test_annotations_that_cannot_be_read_accept_anything() -> None:
    import ast

    for text in ("Tensor", "Callable[..., int]", "a.b.c", "Nowhere[int]", "3"):
        hint = read_type(ast.parse(text, mode="eval").body, "module_for_tests")
        assert wrong("whatever", hint) == "", text
