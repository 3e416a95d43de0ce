"""TOFU's full suite: one pass over the union of its views, against a pass for each metric."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, Ratio
from benchmarks.isolated import isolated

# It needs a separate classifier.
LEFT_OUT = ("gibberish",)
COUNTED = ("forward_tokens", "padded_tokens", "generated_tokens", "backward_tokens")
TARGET = 4.0


def compare(quick: bool, rows: int | None) -> Comparison:
    """Forward tokens and wall-clock time of the same numbers, computed in four ways.

    Args:
        quick: use a few rows of the embedded benchmark.
        rows: maximum number of rows per view, None = all.
    """
    found = isolated("benchmarks.one_pass:measure", None, real=not quick, rows=4 if quick else rows)
    variants: dict[str, dict[str, float]] = found["variants"]
    baseline, kept, _, one = variants.values()
    tokens = baseline["forward_tokens"] / one["forward_tokens"]
    ratios = [
        Ratio("forward tokens, on its own / one pass", tokens, "at least 4", tokens >= TARGET),
        Ratio(
            "padded forward tokens, on its own / one pass", baseline["padded_tokens"] / one["padded_tokens"]
        ),
        Ratio("wall-clock, on its own / one pass", baseline["seconds"] / one["seconds"]),
        Ratio("forward tokens, kept by name / one pass", kept["forward_tokens"] / one["forward_tokens"]),
        Ratio("wall-clock, kept by name / one pass", kept["seconds"] / one["seconds"]),
    ]
    remarks = [
        f"{found['metrics']} metrics, without {', '.join(LEFT_OUT)}. On its own: each metric collects all "
        "data that it and its input metrics read. Kept by name: a metric that was computed as the input "
        "of another is not computed again, as in runners that cache results by the name of a metric; each "
        "of the others still makes its own pass.",
        "All variants use the same collectors, which sort and pad in the same way. Forward tokens include "
        "the prompts of generations and the rows of gradient norms; sharing does not reduce these. No "
        f"metric differs by more than {found['difference']:.1e} between the first and the last variant.",
    ]
    return Comparison(
        "TOFU full suite: one pass against a pass for each metric",
        found["settings"],
        variants,
        ratios,
        remarks,
    )


def measure(real: bool, rows: int | None) -> dict[str, Any]:
    """In a separate process: all variants, on TOFU's rows if `real` and if they are available."""
    bench = _Suite(real, rows)
    metrics = [name for name in bench.suite["metrics"] if name not in LEFT_OUT]
    bench.run(metrics[:1], share=True)  # imports and other one-time work
    alone = {name: bench.run(_closure(bench.suite["metrics"], name), share=False) for name in metrics}
    own = [name for name in metrics if _closure(bench.suite["metrics"], name) == [name]]
    apart, together = bench.run(metrics, share=False), bench.run(metrics, share=True)
    variants = {
        "each metric on its own (baseline)": _sum(cost for cost, _ in alone.values()),
        "each metric, results of others kept by name": _sum(alone[name][0] for name in own),
        "one pass, prefixes not shared": apart[0],
        "one pass": together[0],
    }
    pairs = [(alone[name][1][name], together[1][name]) for name in metrics if name in together[1]]
    assert all((one is None) == (other is None) for one, other in pairs)
    difference = max(abs(one - other) for one, other in pairs if one is not None and other is not None)
    return {
        "variants": variants,
        "settings": bench.settings,
        "metrics": len(metrics),
        "difference": difference,
    }


class _Suite:
    """The suite on a model, with a limit of rows per view."""

    def __init__(self, real: bool, rows: int | None) -> None:
        from expunge.config.validate import load_config
        from expunge.models.load import load_model
        from expunge.pipelines.assemble import data_root, text_of

        data, model = _real() if real else (None, None)
        own = ["experiment=eval/mini/default", "eval=tofu_full"]
        if model is not None:
            key = "pretrained_model_name_or_path"
            own = ["experiment=eval/tofu/default", "eval=tofu_full", f"paths.data_root={data}"]
            own += [
                f"model.model_args.{key}={model}",
                f"model.tokenizer_args.{key}={model}",
                "model.model_args.torch_dtype=float32",
            ]
        cfg = load_config("eval.yaml", [*own, "task_name=benchmark"])
        self.suite = cfg.section("eval.tofu")
        self.suite["bootstrap"] = {"resamples": 1, "seed": 0}
        for view in self.suite["views"].values():
            view["hf_args"]["split"] = "train" if rows is None else f"train[:{rows}]"
        self.text = text_of(cfg, [])
        self.model = load_model(cfg.section("model.model_args"), for_training=False).model
        self.data_root = data_root(cfg)
        self.settings = {
            "model": model.name if model else "embedded",
            "split": self.suite["forget_split"],
            "rows of a view": "all" if rows is None else f"at most {rows}",
            "batch_size": self.suite["batch_size"],
            "max_new_tokens": self.suite["generation"]["max_new_tokens"],
            "dtype": "float32",
        }

    def run(self, metrics: Iterable[str], share: bool) -> tuple[dict[str, float], dict[str, float | None]]:
        """The cost of some metrics without any cache, and their values."""
        from expunge.evaluation.evaluate import evaluate_suite
        from expunge.evaluation.suite import prepare_suite

        suite = copy.deepcopy(self.suite)
        suite["metrics"] = {name: {**suite["metrics"][name], "summary": True} for name in metrics}
        suite["share_prefixes"] = share
        begun = time.perf_counter()
        ready = prepare_suite("tofu", suite, template=self.text.template, data_root=self.data_root)
        scores = evaluate_suite(ready, self.model, out_dir=None, fingerprint_of_model="benchmark")
        seconds = time.perf_counter() - begun
        costs: list[Mapping[str, Any]] = list(scores.about["cost"].values())
        return {name: sum(cost[name] for cost in costs) for name in COUNTED} | {"seconds": seconds}, dict(
            scores.aggregates()
        )


def _real() -> tuple[Path | None, Path | None]:
    """The folders of TOFU's rows and of a small model trained on them, if available (see `EXPUNGE_DATA`)."""
    data = Path(os.environ.get("EXPUNGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    model = data.parent / "models" / "tofu-tiny-full"
    return (data, model) if (data / "tofu").is_dir() and model.is_dir() else (None, None)


def _closure(metrics: Mapping[str, Any], name: str) -> list[str]:
    """A metric, preceded by all metrics that it reads."""
    found: list[str] = []
    for value in metrics[name].values():
        for other in value if isinstance(value, list) else [value]:
            if isinstance(other, str) and other in metrics:
                found += [item for item in _closure(metrics, other) if item not in found]
    return [*found, name]


def _sum(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    listed = list(costs)
    return {name: sum(cost[name] for cost in listed) for name in listed[0]}
