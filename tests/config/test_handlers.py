from __future__ import annotations

import sys
from pathlib import Path

import pytest

from expunge.core.errors import UserError
from expunge.core.handlers import REQUIRED, load_handler, read_signature
from expunge.core.source import make_importable


def test_own_loss_is_read_without_importing(own_configs: Path) -> None:
    """The module imports a package that does not exist, so importing the module would raise."""
    make_importable([own_configs])
    mine = read_signature("own_method_for_tests:mine")
    assert mine.positional == ("forget_seq_logp_B", "ref_forget_seq_logp_B")
    assert mine.keyword["beta"] == 0.25
    assert repr(mine.keyword["scale"]) == "HALF"
    assert mine.keyword["power"] is REQUIRED
    assert mine.summary == "Mine: forgets twice as fast."
    assert mine.decorators["loss"] == {"kind": "sequence", "gamma": 2.0, "retain": "kl", "paper": "mine"}
    thing = read_signature("own_method_for_tests:Thing")
    assert (thing.positional, dict(thing.keyword)) == (("first",), {"second": 2})
    assert "own_method_for_tests" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "npo:npo",
        "simnpo:simnpo",
        "dpo:dpo",
        "grad_diff:grad_diff",
        "grad_ascent:grad_ascent",
        "finetune:finetune",
    ],
)
def test_agrees_with_inspect(name: str) -> None:
    from expunge.config.method import hyper_parameters

    handler = f"expunge.methods.{name}"
    read, spec = read_signature(handler), load_handler(handler).spec
    assert read.positional == tuple(need.name for need in spec.needs)
    weights = {
        "gamma": spec.gamma,
        "alpha": spec.alpha,
        "retain": spec.retain,
        "schedule": spec.schedule,
        "combine": "sum",
    }
    assert hyper_parameters(read) == {**spec.hyper, **weights}


def test_names_that_are_imported_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("from .deep import inner as outer\n")
    (package / "deep.py").write_text("def inner(a, b=1, **rest):\n    '''Deep.'''\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    read = read_signature("own_package_for_tests:outer")
    assert (read.summary, read.positional, dict(read.positional_defaults), read.open) == (
        "Deep.",
        ("a", "b"),
        {"b": 1},
        True,
    )


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("npo", "module:function"),
        ("expunge.methods.nqo:npo", "no module"),
        ("expunge.methods.npo:nqo", "did you mean 'npo'"),
        ("nowhere_at_all:f", "no module"),
    ],
)
def test_faulty_handlers(handler: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_signature(handler)


def test_source_that_does_not_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_for_tests.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="line 1"):
        read_signature("broken_for_tests:f")
