from __future__ import annotations

from pathlib import Path

import pytest

from expunge.config.listing import entries, kinds, page_of, show
from expunge.core.errors import UserError
from expunge.core.source import make_importable


def test_methods_are_described_by_their_docstrings() -> None:
    methods = {entry.name: entry for entry in entries("methods")}
    assert {"GradAscent", "GradDiff", "NPO", "SimNPO", "DPO", "FT"} <= set(methods)
    assert all(entry.summary for entry in methods.values())


def test_models_and_experiments() -> None:
    models = {entry.name: entry.summary for entry in entries("models")}
    assert models["Llama-3.2-1B-Instruct"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert {"unlearn/tofu/default", "unlearn/tofu/idk", "finetune/tofu/default", "eval/tofu/default"} <= {
        e.name for e in entries("experiments")
    }


def test_show_lists_what_a_method_reads_and_takes() -> None:
    page = show("NPO")
    for fragment in (
        "forget_seq_logp_B, ref_forget_seq_logp_B",
        "beta=0.1",
        "retain='nll'",
        "arXiv:2404.05868",
        "handler: expunge.methods.npo:npo",
    ):
        assert fragment in page, fragment


def test_show_lists_the_extra_terms_of_a_method() -> None:
    page = show("ELM")
    assert "term fluency: expunge.methods.elm:elm_fluency, reads: alternate_logp_BN" in page
    assert "fluency=1.0" in page
    assert "term " not in show("NPO")


def test_a_choice_of_every_kind_can_be_shown() -> None:
    for kind in kinds():
        first = entries(kind)[0]
        page = page_of(first)
        assert f"{first.name} ({kind})" in page
        assert str(first.path) in page


def test_own_choices(own_configs: Path) -> None:
    make_importable([own_configs])
    assert "Mine: forgets twice as fast." in [entry.summary for entry in entries("methods", [own_configs])]
    assert "power=required" in show("Mine", [own_configs])


def test_near_matches() -> None:
    with pytest.raises(UserError, match="did you mean 'methods'"):
        entries("method")
    with pytest.raises(UserError, match="did you mean 'SimNPO'"):
        show("SimNP")
