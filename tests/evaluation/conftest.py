"""Tables on literals, and a suite on four rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from composed import compose_config
from expunge.core.config import Config
from expunge.evaluation.tables import Examples, TokenTable

torch.set_num_threads(1)  # more threads slow these small matrices down

ROWS = [
    {
        "question": f"Who is {name}?",
        "answer": f"{name} is a writer.",
        "paraphrased_answer": f"A writer is {name}.",
        "perturbed_answer": [f"{name} is a {job}." for job in ("baker", "king")],
    }
    for name in ("Ada Quill", "Ben Ode", "Cy Verse", "Di Rhyme")
]


def made_examples(answers: Sequence[int], texts: Sequence[str] | None = None) -> Examples:
    """`answers[r]` answers for row r."""
    row_B = np.repeat(np.arange(len(answers)), answers)
    answer_B = np.concatenate([np.arange(count) for count in answers]).astype(np.int64)
    return Examples(
        tuple(f"row{row}" for row in range(len(answers))),
        row_B,
        answer_B,
        tuple(texts or ["text"] * len(row_B)),
    )


@pytest.fixture
def examples() -> Callable[..., Examples]:
    """`examples([1, 2])`: the examples of a row with one answer and of a row with two."""
    return made_examples


@pytest.fixture
def tokens() -> Callable[..., TokenTable]:
    """`tokens([[-.1, -.2], ...])`: a table of log-probabilities; each last token ends the turn."""

    def build(
        logp: Sequence[Sequence[float]],
        *,
        hit: Sequence[Sequence[bool]] | None = None,
        mu: float = 0.0,
        var: float = 1.0,
        answers: Sequence[int] | None = None,
        texts: Sequence[str] | None = None,
        ends: bool = True,
    ) -> TokenTable:
        flat = np.array([value for row in logp for value in row], dtype=np.float32)
        offset = np.cumsum([0, *map(len, logp)])
        turn_end = np.zeros(len(flat), dtype=bool)
        if ends:
            turn_end[[stop - 1 for start, stop in pairwise(offset) if stop > start]] = True
        hits = (
            np.array([value for row in hit for value in row], dtype=bool)
            if hit is not None
            else np.ones(len(flat), dtype=bool)
        )
        rows = made_examples(answers or [1] * len(logp), texts)
        return TokenTable(
            rows,
            offset,
            flat,
            hits,
            np.full(len(flat), mu, np.float32),
            np.full(len(flat), var, np.float32),
            turn_end,
            -flat,
        )

    return build


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Files of TOFU's names with a handful of rows each."""
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    holdout = [
        {"question": f"Where is {place}?", "answer": f"{place} is in the north."}
        for place in ("Port Verdant", "Ayr", "Oss", "Ulm")
    ]
    files = {
        "forget10": [{key: row[key] for key in ("question", "answer")} for row in ROWS],
        "forget10_perturbed": ROWS,
        "retain_perturbed": [{**row, "question": row["question"] + " Say."} for row in ROWS],
        "real_authors_perturbed": ROWS[:2],
        "world_facts_perturbed": ROWS[2:],
        "holdout10": holdout,
        "forget05": [{key: row[key] for key in ("question", "answer")} for row in ROWS[2:]],
        "forget05_perturbed": ROWS[2:],
        "holdout05": holdout[:2],
    }
    for name, rows in files.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@cache
def composed(*overrides: str) -> Config:
    """Compose equal overrides once: hydra takes longer than these evaluations."""
    return compose_config("eval", list(overrides))


@pytest.fixture
def suite_cfg() -> Callable[..., Config]:
    """`suite_cfg("eval.tofu.batch_size=1", suite="tofu_full", compat="none")`: a shipped suite, made fast."""

    def build(*overrides: str, suite: str = "tofu_full", compat: str = "none") -> Config:
        short = ("eval.tofu.generation.max_new_tokens=4", "eval.tofu.bootstrap.resamples=50", "task_name=x")
        paths = [item.partition("=")[2] for item in overrides if item.startswith("retain_logs_path=")]
        others = [item for item in overrides if not item.startswith("retain_logs_path=")]
        cfg = composed(f"eval={suite}", f"compat={compat}", *short, *others)
        if not paths:
            return cfg
        tree = copy.deepcopy(dict(cfg.tree))
        tree["eval"]["tofu"]["retain_logs_path"] = paths[-1]
        return replace(cfg, tree=tree)

    return build


@pytest.fixture
def evaluate(tiny_tokenizer: Any, tiny_model: Any, data_root: Path, suite_cfg: Any) -> Callable[..., Any]:
    """`evaluate(out_dir, model=..., ...)`: the shipped suite on the handful of rows with a tiny model."""

    def run(
        out_dir: Path | None,
        *overrides: str,
        model: Any = None,
        system_prompt: str = "Be brief.",
        **kwargs: Any,
    ) -> Any:
        from expunge.data.template import Template
        from expunge.evaluation.evaluate import evaluate_suite
        from expunge.evaluation.suite import prepare_suite

        chosen = {key: kwargs.pop(key) for key in ("suite", "compat") if key in kwargs}
        cfg = suite_cfg(*overrides, **chosen)
        template = Template.from_args(
            {"apply_chat_template": True, "system_prompt": system_prompt}, tiny_tokenizer
        )
        node = kwargs.pop("node", cfg.section("eval.tofu"))
        suite = prepare_suite("tofu", node, template=template, data_root=data_root, switches=cfg.switches)
        chosen_model = model if model is not None else tiny_model()
        return evaluate_suite(suite, chosen_model, out_dir=out_dir, **kwargs)

    return run
