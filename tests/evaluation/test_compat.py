"""Each difference from the field is a switch, names a real keyword, and does what it says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from composed import compose_config
from expunge.core.handlers import load_handler

COMPATS = ("none", "open_unlearning", "soul")


def keywords_of(component: str) -> list[str]:
    """The keyword-only parameters of the function that a component names."""
    if component == "encode":
        from expunge.data.template import Template

        function: Any = Template.encode
    elif component == "driver":
        from expunge.training.driver import Driver

        parameters = inspect.signature(Driver).parameters
        return list(parameters)
    else:
        function = next(loaded for loaded in _functions() if loaded.__name__ == component)
    return [
        item.name
        for item in inspect.signature(function).parameters.values()
        if item.kind is item.KEYWORD_ONLY
    ]


def _functions() -> Iterator[Any]:
    """Every metric of the suites, and every loss."""
    import importlib
    import pkgutil

    from expunge import methods

    suites = compose_config(
        "eval", ["eval=[tofu_full,ppl,wmdp,copyright,toxicity,few_shots]", "task_name=x"]
    ).section("eval")
    for node in (node for suite in suites.values() for node in suite["metrics"].values()):
        yield load_handler(node["handler"])
    for module in pkgutil.iter_modules(methods.__path__):
        for value in vars(importlib.import_module(f"expunge.methods.{module.name}")).values():
            if hasattr(value, "spec"):
                yield value


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("name", COMPATS)
def test_each_switch_names_a_real_keyword(name: str) -> None:
    cfg = compose_config("eval", [f"compat={name}", "task_name=x"])
    assert cfg.get("compat.name") == name
    for component, switches in (cfg.get("compat.switches") or {}).items():
        known = keywords_of(component)
        for keyword in switches:
            assert keyword in known, f"{component}.{keyword}: {component} has {known}"


def test_each_switch_of_a_metric_changes_what_it_is_for_and_nothing_else(evaluate: Any) -> None:
    """Extraction strength is at least 1/L, gradient norms are tensor means, privleak may use chance."""
    ours, field = evaluate(None).metrics, evaluate(None, compat="open_unlearning").metrics
    values = {name: (ours[name]["agg_value"], field[name]["agg_value"]) for name in ours}
    changed = {name for name, pair in values.items() if not _same(*pair)}
    assert changed == {"extraction_strength", "privleak"} | ({"mia_gradnorm"} & changed)
    assert values["extraction_strength"][1] > values["extraction_strength"][0]
    assert values["privleak"][0] is None
    assert field["privleak"]["reference_is_chance"] is True
    norms = [
        [row["score"] for row in found["mia_gradnorm"]["forget"]["value_by_index"].values()]
        for found in (ours, field)
    ]
    assert all(
        mean < whole for whole, mean in zip(*norms, strict=True)
    )  # a mean of parts is below the norm of all
    assert (field["mia_gradnorm"]["norm"], field["mia_gradnorm"]["train_mode"]) == ("mean_of_tensors", True)


def test_what_the_user_writes_wins_over_the_switch(evaluate: Any) -> None:
    scores = evaluate(
        None, "+eval.tofu.metrics.privleak.allow_missing_reference=false", compat="open_unlearning"
    )
    assert scores.reasons()["privleak"] == "no retain_logs_path"


def test_a_switch_alone_may_be_set(evaluate: Any) -> None:
    scores = evaluate(None, "+compat.switches.truth_ratio.eps=0.0")
    ratios = scores.metrics["forget_truth_ratio"]["value_by_index"]
    assert scores.metrics["forget_truth_ratio"]["agg_value"] == pytest.approx(
        sum(min(row["score"], 1 / row["score"]) for row in ratios.values()) / 4
    )


def test_the_fields_encoding_appends_an_eos_where_the_turn_is_cut(tiny_tokenizer: Any) -> None:
    from expunge.data.template import Template

    template = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    whole = template.encode("Who?", "Ada Quill.")
    cut = len(whole) - 2
    ours, field = (
        template.encode("Who?", "Ada Quill.", max_length=cut, append_eos=switch) for switch in (False, True)
    )
    assert ours.turn_end is None
    assert field.input_ids == (*ours.input_ids, tiny_tokenizer.eos_token_id)
    assert field.turn_end == len(field) - 1
