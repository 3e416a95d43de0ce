from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from soul_lines import loaded, short

from expunge.soul.translate import translate

TASKS = {
    "tofu": ["tofu"],
    "wmdp": ["ppl", "few_shots", "wmdp"],
    "hp": ["ppl", "few_shots", "copyright"],
    "copyright": ["ppl", "few_shots", "copyright"],
    "toxic": ["ppl", "few_shots", "toxicity"],
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_validates_its_suites(task: str, data_root: Path, write_rows: Any) -> None:
    texts = write_rows(data_root.parent / "book.jsonl", [{"text": "Ada writes."}])
    answers = write_rows(data_root.parent / "chat.jsonl", [{"prompt": "Who?", "response": "You."}] * 9)
    name = {"tofu": "Tofu_forget10", "hp": str(texts), "toxic": str(answers)}.get(task, "SafePku")
    flags = [*short(task_name=task, forget_dataset_name=name), "--forget_ratio", "4", "--dataset_seed", "7"]
    cfg = loaded(translate(flags))
    assert list(cfg.section("eval")) == TASKS[task]
    assert bool(cfg.get("eval.tofu.metrics.tofu_soul_ks.enabled")) == (task == "tofu")
    if task == "hp":
        assert cfg.get("eval.copyright.views.prompt_50.hf_args.path") == str(texts)
    if task == "toxic":
        # The prompts are those of the forgotten rows: the same selection with the same seed.
        view, (node,) = cfg.get("eval.toxicity.views.forget"), cfg.section("data.forget").values()
        assert view["select"] == node["args"]["select"] == {"ratio": 4, "seed": 7}
        assert view["hf_args"]["path"] == node["args"]["hf_args"]["path"] == str(answers)
        assert (view["prompt_key"], view["reshape"], view["count"]) == ("prompt", None, None)


def test_the_prompts_of_safe_pku_are_those_of_the_rows_that_are_forgotten() -> None:
    overrides = translate(short(task_name="", forget_dataset_name="SafePku")).overrides
    assert "eval=[ppl,few_shots,toxicity]" in overrides  # the default task is toxic
    assert "eval.toxicity.views.forget.select={ratio:200,seed:0}" in overrides
    assert not any("reshape" in text or "hf_args" in text for text in overrides if text.startswith("eval."))
