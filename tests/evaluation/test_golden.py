"""Compare every row with open-unlearning's own code on real models and data, within the stated tolerances."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from composed import compose_config
from expunge.data.template import Template
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.suite import prepare_suite
from expunge.evaluation.suite_scores import Scores

pytestmark = pytest.mark.shared
BY_DEFAULT_OTHERWISE = {"extraction_strength", "mia_gradnorm"}
"""And privleak, without logs."""

NOT_THERE = {"mia_reference", "gibberish"}
"""Metrics of ours that are not among the reference values."""


@pytest.fixture(scope="module")
def field(shared: Path) -> Any:
    """`field("full", "open_unlearning", ...)`: our scores and theirs; `rows` limits each view."""

    def build(
        name: str, compat: str, rows: int | None = None, *overrides: str
    ) -> tuple[Scores, dict[str, Any]]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        golden = shared / "golden"
        logs = golden / "tofu-tiny-retain90-forget10" / "TOFU_EVAL.json"
        known = [f"retain_logs_path={logs}"] if name == "full" and rows is None else []
        fixed = ["eval=tofu_full", f"compat={compat}", "task_name=x", "model.template_args.date_string=null"]
        cfg = compose_config("eval", [*fixed, *known, *overrides])
        node = cfg.section("eval.tofu")
        if rows is not None:
            for view in node["views"].values():
                view["hf_args"]["split"] = f"train[:{rows}]"
        path = shared / "models" / f"tofu-tiny-{name}"
        tokenizer = AutoTokenizer.from_pretrained(path)
        suite = prepare_suite(
            "tofu",
            node,
            template=Template.from_args(cfg.section("model.template_args"), tokenizer),
            data_root=shared / "data",
            switches=cfg.switches,
        )
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa").eval()
        scores = evaluate_suite(suite, model, out_dir=None)
        return scores, json.loads((golden / f"tofu-tiny-{name}-forget10" / "TOFU_EVAL.json").read_text())

    return build


def numbers(node: Any, rows: int | None = None, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number below a node with its path.

    With `rows`, only the first rows of `value_by_index`, and no aggregates: those are over all rows.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            if rows is None or (key not in ("agg_value", "auc") and not (key.isdigit() and int(key) >= rows)):
                yield from numbers(value, rows, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from numbers(value, rows, f"{path}[{number}]")
    elif isinstance(node, int | float):
        yield path, float(node)


def assert_agrees(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], rows: int | None = None, *, but: set[str]
) -> int:
    """Every reference number equals ours to 1e-4; returns their count."""
    compared = 0
    for name in theirs:
        if name in but:
            continue
        mine = dict(numbers(ours[name], rows))
        for path, value in numbers(theirs[name], rows):
            compared += 1
            if name == "forget_quality":
                assert math.log(mine[path]) == pytest.approx(math.log(value), rel=1e-2), path
            elif "rouge" in path or name.endswith("ROUGE"):
                # Per row equal but where two tokens tie; the aggregate to 5e-3.
                assert mine[path] == pytest.approx(value, abs=5e-3 if path == "/agg_value" else 1e-9), (
                    f"{name}{path}"
                )
            else:
                of_auc = name.startswith("mia") and path in ("/auc", "/agg_value")
                assert mine[path] == pytest.approx(value, rel=1e-4, abs=1e-4 if of_auc else 0), (
                    f"{name}{path}"
                )
    return compared


ROUGES = {f"{rows}_Q_A_ROUGE" for rows in ("forget", "retain", "ra", "wf")}
OF_AGGREGATES = {"model_utility", "forget_quality", "privleak"}


@pytest.mark.parametrize("name", ["full", "retain90"])
def test_statistics_of_the_first_rows_agree(name: str, field: Any) -> None:
    """Probabilities, losses, truth ratios and the attacks' scores of the first 6 rows of every view."""
    off = [f"~eval.tofu.metrics.{metric}" for metric in (*ROUGES, "model_utility", "gibberish")]
    scores, golden = field(name, "open_unlearning", 6, *off)
    compared = assert_agrees(scores.metrics, golden, 6, but=ROUGES | OF_AGGREGATES)
    # Two numbers each of 4 probabilities with one answer, 4 with 5 or 3, 2 with options, 4 ratios, EM, ES and
    # 5 attacks on two sides.
    assert compared == 6 * (6 * 2 + 2 * (5 + 5 + 3 + 3) + 2 + 4 + 2 + 5 * 2)


def test_generations_of_the_first_rows_agree(field: Any) -> None:
    off = [
        f"~eval.tofu.metrics.{metric}"
        for metric in ("mia_gradnorm", "retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE", "model_utility")
    ]
    scores, golden = field("full", "none", 3, *off)
    ours, theirs = (found["forget_Q_A_ROUGE"]["value_by_index"] for found in (scores.metrics, golden))
    for row in map(str, range(3)):
        assert ours[row] == theirs[row]


@pytest.mark.slow
@pytest.mark.parametrize("compat", ["open_unlearning", "none"])
@pytest.mark.parametrize("name", ["full", "retain90"])
def test_every_value_agrees(name: str, compat: str, field: Any) -> None:
    """The whole evaluation; by default all metrics agree, except those that differ on purpose."""
    scores, golden = field(name, compat)
    otherwise = (
        set()
        if compat == "open_unlearning"
        else BY_DEFAULT_OTHERWISE | ({"privleak"} if name == "retain90" else set())
    )
    compared = assert_agrees(scores.metrics, golden, but=otherwise)
    assert compared > 15_000
    assert set(scores.metrics) == set(golden) | NOT_THERE
    # The full model misses no token, so that no floor shows.
    for metric in otherwise - {"privleak", *({"extraction_strength"} if name == "full" else ())}:
        rows = [
            found[metric].get("forget", found[metric])["value_by_index"] for found in (scores.metrics, golden)
        ]
        assert any(rows[0][row]["score"] != pytest.approx(rows[1][row]["score"], rel=1e-4) for row in rows[1])
    if "privleak" in otherwise:
        assert scores.reasons()["privleak"] == "no retain_logs_path"
