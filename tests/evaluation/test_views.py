"""Views: fingerprints, text, and faulty entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import subject_of

from expunge.core.errors import UserError
from expunge.data.template import Template
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.tokens import collect_tokens
from expunge.evaluation.metrics.perplexity import perplexity
from expunge.evaluation.plan import make_plan
from expunge.evaluation.view_rows import load_views
from expunge.evaluation.view_specs import ViewSpec


@pytest.fixture
def template(tiny_tokenizer: Any) -> Template:
    return Template.from_args({"apply_chat_template": True}, tiny_tokenizer)


def spec(path: Path, **keys: Any) -> ViewSpec:
    return ViewSpec(hf_args={"path": str(path)}, **keys)


def test_a_fingerprint_is_of_contents_and_settings_not_of_the_name_of_a_file(
    tmp_path: Path, template: Template
) -> None:
    rows = [{"question": "Who?", "answer": "Ada.", "other": "Ben."}]
    for name, content in {"a": rows, "b": rows, "c": [{**rows[0], "answer": "Cy."}]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    specs = {name: spec(tmp_path / f"{name}.json") for name in "abc"}
    specs |= {
        "key": spec(tmp_path / "a.json", answer_key="other"),
        "length": spec(tmp_path / "a.json", max_length=99),
    }
    found = {
        name: view.fingerprint for name, view in load_views(specs, list(specs), template, None, {}).items()
    }
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 4
    field = load_views(specs, ["a"], template, None, {"append_eos": True})["a"]
    assert field.fingerprint != found["a"]


def test_perplexity_of_a_text_view(tmp_path: Path, template: Template, tiny_model: Any) -> None:
    """Pieces of 8 tokens without overlap; exp of the mean nll over all their labels."""
    (tmp_path / "text.txt").write_text(
        "Ada Quill was born in Port Verdant in 1952.\n\nShe writes mystery novels.\n"
    )
    specs = {"text": spec(tmp_path / "text.txt", text_key="text", max_length=8)}
    view = load_views(specs, ["text"], template, None, {})["text"]
    assert [len(item) for item in view.encoded[:-1]] == [8] * (len(view.encoded) - 1)
    assert len(view.encoded) > 2
    table = collect_tokens(subject_of(tiny_model()), {"text": (view.encoded, view.examples)}, Cost())["text"]
    assert len(table.logp_M) == sum(len(item) - 1 for item in view.encoded)
    assert not table.turn_end_M.any()
    assert perplexity(table).value == pytest.approx(float(np.exp(-table.logp_M.mean())), rel=1e-5)
    with pytest.raises(UserError, match="max_length"):
        _ = load_views({"text": spec(tmp_path / "text.txt", text_key="text")}, ["text"], template, None, {})[
            "text"
        ].encoded


def test_faulty_entries(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(
            {
                "views": {
                    "a": {"hf_args": {"path": "x"}, "answerkey": "y"},
                    "b": {"question_key": "q"},
                    "c": {"hf_args": {"path": "x"}},
                }
            }
        )
    assert len(caught.value.faults) == 2
    assert "did you mean 'answer_key'" in str(caught.value.faults[0])
    assert ViewSpec({"path": "x", "name": None}).absent == "its hf_args.name is null"
    assert ViewSpec({"path": "x"}).absent is None
