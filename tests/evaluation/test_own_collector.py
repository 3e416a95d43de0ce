"""A collector of the user's own package: named in a suite, read by a metric, cached, validated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.cli import main as cli
from expunge.config.short_names import COLLECTORS
from expunge.core.errors import UserError
from expunge.data.template import Template
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.plan import make_plan
from expunge.evaluation.suite import prepare_suite

OWN = """
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from expunge.core.ranges import AtLeast, AtMost
from expunge.evaluation.collect.collector import Absent, Collector, Cost, Request, Subject
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import Floats, Table, TokenTable


@dataclass(frozen=True)
class HiddenTable(Table):
    ARRAYS = ("norm_B",)
    TEXTS = ("said",)
    norm_B: Floats
    said: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    note: int = 0
    broken: bool = False


class Hidden(Collector):
    kind = "hidden"
    table = HiddenTable
    of_metric = ("layer",)
    of_suite = {"scale": 1.0}
    section = "hidden"
    settings = Settings

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[Any]:
        for view, settings in requests:
            if settings.get("broken"):
                yield Absent("it is broken")
                continue
            norms = []
            for item in view.encoded:
                with torch.no_grad():
                    found = subject.model(torch.tensor([item.input_ids]), output_hidden_states=True)
                norms.append(float(found.hidden_states[settings["layer"]].norm()) * settings["scale"])
                cost.forward_tokens += len(item)
            texts = tuple(item.target_text for item in view.encoded)
            yield HiddenTable(view.examples, np.array(norms), texts)


class SecondTokens(Hidden):
    table = TokenTable


class Untabled:
    kind = "untabled"

    def collect(self): ...


def hidden_norm(states: HiddenTable, *, layer: Annotated[int, AtLeast(0), AtMost(2)] = 1) -> Result:
    assert len(states.said) == len(states.norm_B)
    return Result(Mean(states.norm_B), columns={"score": states.norm_B}, row_ids=states.examples.row_ids)
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_states.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_states", raising=False)
    return "own_states"


def test_validation_knows_it_and_its_section(own_package: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its settings in the suite and in a metric's entry pass `expunge validate`; faults give exit code 2."""
    entry = f"handler: {own_package}:hidden_norm, states: forget, layer: 2, hidden: {{note: 1}}"
    given = [
        "experiment=eval/tofu/default",
        "task_name=x",
        "+eval.tofu.hidden.note=2",
        f"+eval.tofu.metrics.norm={{{entry}}}",
        f"+eval.tofu.collectors=[{own_package}:Hidden]",
    ]
    assert cli.main(["validate", "eval", *given]) == 0, capsys.readouterr().err
    assert cli.main(["validate", "eval", *given, "eval.tofu.hidden.note=x"]) == 2
    assert "eval.tofu.hidden.note=x: must be a whole number" in capsys.readouterr().err
    assert cli.main(["validate", "eval", *given[:-1]]) == 2
    assert "is a HiddenTable, which no collector of this suite makes" in capsys.readouterr().err


@pytest.fixture
def scored(own_package: str, suite_cfg: Any, data_root: Path, tiny_tokenizer: Any) -> Callable[..., Any]:
    """`scored(model, out_dir, layer=2, hidden={...}, ...)`: one metric on one view."""

    def run(model: Any, out_dir: Path | None, layer: int = 1, hidden: Any = None, **keys: Any) -> Any:
        views = suite_cfg().section("eval.tofu")["views"]
        entry = {"handler": f"{own_package}:hidden_norm", "states": "forget", "layer": layer}
        if hidden is not None:
            entry["hidden"] = hidden
        node = {"views": {"forget": views["forget"]}, "metrics": {"norm": entry}}
        node |= {"collectors": [f"{own_package}:Hidden"], "bootstrap": {"resamples": 0}, **keys}
        template = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
        suite = prepare_suite("own", node, template=template, data_root=data_root)
        return evaluate_suite(suite, model, out_dir=out_dir)

    return run


def test_its_table_is_collected_once_and_read_back(scored: Any, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    first = scored(model, tmp_path)
    assert first.metrics["norm"]["n_scored"] == 4
    assert first.about["cost"]["hidden"]["forward_tokens"] > 0
    (tmp_path / "OWN_EVAL.json").unlink()
    again = scored(model, tmp_path)
    assert again.about["cost"] == {}
    assert again.metrics == first.metrics
    # An option of the metric, a key of the suite and a key of the section: each is another table.
    for changed in ({"layer": 2}, {"scale": 2.0}, {"hidden": {"note": 1}}):
        found = scored(model, tmp_path, **changed)
        assert found.about["cost"]["hidden"]["forward_tokens"] > 0, changed
    assert scored(model, tmp_path, scale=2.0).metrics["norm"]["agg_value"] == pytest.approx(
        2 * first.metrics["norm"]["agg_value"]
    )
    with torch.no_grad():
        assert scored(model, None, hidden={"broken": True}).reasons() == {"norm": "it is broken"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer": 3}, "eval.own.metrics.norm.layer=3: must be a whole number of at least 0 and at most 2"),
        ({"hidden": {"nota": 1}}, r"norm.hidden.nota=1: Settings takes no 'nota'\n  -> did you mean 'note'"),
        ({"hidden": {"note": "x"}}, "eval.own.metrics.norm.hidden.note=x: must be a whole number"),
        (
            {"collectors": []},
            r"norm.states of hidden_norm is a HiddenTable, which no collector of this suite makes",
        ),
        ({"collectors": ["own_states:Hiden"]}, "did you mean 'Hidden'"),
        ({"collectors": ["own_state:Hidden"]}, "no module 'own_state'"),
        ({"collectors": ["own_states:Untabled"]}, "has no table"),
        ({"collectors": ["own_states:SecondTokens"]}, "table of another collector"),
        ({"collectors": ["own_states:Hidden", "own_states:Hidden"]}, "the kind 'hidden' or the table"),
    ],
)
def test_faults_are_reported_before_a_model_is_needed(
    keys: dict[str, Any], message: str, scored: Any
) -> None:
    with pytest.raises(UserError, match=message):
        scored(None, None, **keys)


def test_the_shipped_collectors_are_a_table_of_five() -> None:
    found = make_plan({}).collectors
    assert list(found) == list(COLLECTORS) == ["tokens", "generations", "gradnorms", "choices", "harness"]
    assert len({collector.table for collector in found.values()}) == 5
