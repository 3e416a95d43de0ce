"""Every method on the embedded benchmark, three seeds: `python -m benchmarks.methods_mini` writes docs/results/methods-mini.md.

For each seed a full and a retain model are trained; each method then starts from that seed's full model and is held against that seed's
retain model. A method runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from scipy import stats

from expunge.config.location import configs_dir
from expunge.config.validate import load_config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json, write_text
from expunge.core.run_dir import versions
from expunge.pipelines import evaluate, train, unlearn
from expunge.report.table import COLLAPSED, DAMAGED, number

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "methods-mini.md"
NOTES = ROOT / "docs" / "results" / "methods-mini-notes.json"
SEEDS = (0, 1, 2)
NO_METHOD = ("finetune",)
# Values of their own on this benchmark, chosen on it: see the experiments.
EXPERIMENT = {"NPO": "npo", "SimNPO": "simnpo", "DPO": "idk"}
METRICS = ("forget_quality", "model_utility", "forget_Q_A_Prob", "extraction_strength", "privleak")
NOT_FORGOTTEN = 0.5
"""Share of the starting model's forget probability above which nothing to speak of was forgotten."""


def methods() -> list[str]:
    """The names under `configs/trainer`."""
    return sorted(path.stem for path in (configs_dir() / "trainer").glob("*.yaml") if path.stem not in NO_METHOD)


def prepare(folder: Path) -> None:
    """Train and evaluate the full and the retain model of each seed, where that is not done yet."""
    for seed in SEEDS:
        home = folder / f"seed{seed}"
        split = "data.train.MINI_full.args.hf_args.name=retain90"
        for name, extra in (("retain90", [split]), ("full", [])):
            train.run(load_config("train.yaml", ["experiment=finetune/mini/default", *extra, *_common(home / name, seed)]))
            logs = [] if name == "retain90" else [f"retain_logs_path={home / 'retain90_eval' / 'TOFU_EVAL.json'}"]
            model = f"model.model_args.pretrained_model_name_or_path={home / name}"
            evaluate.run(load_config("eval.yaml", ["experiment=eval/mini/default", model, *logs, *_common(home / f"{name}_eval", seed)]))


def run_method(method: str, folder: Path) -> list[dict[str, float | None]]:
    """Unlearn with one method from every seed's full model.

    Returns:
        Metrics, seconds and peak memory, a dict a seed.
    """
    found = []
    for seed in SEEDS:
        home = folder / f"seed{seed}"
        record = unlearn.run(
            load_config(
                "unlearn.yaml",
                [
                    f"experiment=unlearn/mini/{EXPERIMENT.get(method, 'default')}",
                    f"trainer={method}",
                    f"model.model_args.pretrained_model_name_or_path={home / 'full'}",
                    f"retain_logs_path={home / 'retain90_eval' / 'TOFU_EVAL.json'}",
                    *_common(home / method, seed),
                ],
            )
        )
        last = json.loads((home / method / "log.jsonl").read_text().splitlines()[-1])
        cost = {"seconds": last.get("train_runtime"), "peak_memory_mb": record.peak_memory_mb}
        found.append({**{name: record.metrics.get(name) for name in METRICS}, **cost})
    return found


def _common(folder: Path, seed: int) -> list[str]:
    return [f"task_name={folder.name}", f"paths.output_dir={folder}", f"seed={seed}"]


def verdict(found: dict[str, float | None], start: dict[str, float | None]) -> str:
    """What a method did, by the rules at the head of the page."""
    utility, base = found["model_utility"] or 0.0, start["model_utility"] or 1.0
    kept = (found["forget_Q_A_Prob"] or 0.0) / (start["forget_Q_A_Prob"] or 1.0)
    if utility < COLLAPSED * base:
        return "collapsed"
    told = ["did not forget"] if kept > NOT_FORGOTTEN else []
    return ", ".join([*told, *(["utility damaged"] if utility < DAMAGED * base else [])]) or "forgot"


def interval(values: list[float]) -> str:
    """Mean and half-width of its 95% t-interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return number(mean)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{number(mean)} ± {number(half)}"


HEAD = """# Every method on the embedded benchmark

Made by `python -m benchmarks.methods_mini`: 40 invented authors, four to forget (40 rows), a Llama of .5M parameters, seeds 0, 1, 2
(each with a full and a retain model of its own). Mean ± half-width of the 95% t-interval over the seeds; with three of them it is wide.
Every method has its signature's hyper-parameters and the benchmark's budget (`configs/budget/mini.yaml`), except where its own YAML or
its experiment says otherwise. NPO and SimNPO were given values that suit this benchmark, chosen on it, so their rows show that the
methods work here and do not rank them.

*collapsed*: utility below {collapsed:.0%} of the full model's, the other numbers say nothing. *utility damaged*: below {damaged:.0%}.
*did not forget*: forget probability above {kept:.0%} of the full model's.
"""
COLUMNS = {
    "forget_quality": "forget quality ↑",
    "model_utility": "model utility ↑",
    "forget_Q_A_Prob": "forget prob. → retain's",
    "extraction_strength": "extraction → retain's",
    "privleak": "privleak → 0",
    "seconds": "train s",
    "peak_memory_mb": "peak MiB",
}

Rows = list[dict[str, float | None]]


def present(rows: Rows, column: str) -> list[float]:
    """The values of a column that are there."""
    return [value for row in rows if (value := row.get(column)) is not None]


def means(rows: Rows) -> dict[str, float | None]:
    """The mean of each column."""
    return {column: statistics.fmean(present(rows, column)) if present(rows, column) else None for column in COLUMNS}


def page(results: dict[str, Rows], refused: dict[str, str], baselines: dict[str, Rows]) -> str:
    """The results page."""
    notes = read_json(NOTES) if NOTES.is_file() else {}
    told = {"full": "before unlearning", "retain90": "the reference"}
    start = means(baselines["full"])
    lines = []
    for name, rows in {**baselines, **results}.items():
        cells = [interval(present(rows, column)) if present(rows, column) else "–" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {told.get(name) or verdict(means(rows), start)} |")
    reasons = [f"* **{name}**: {notes[name]}" for name in [*results, *refused] if name in notes]
    text = [HEAD.format(collapsed=COLLAPSED, damaged=DAMAGED, kept=NOT_FORGOTTEN)]
    text += [f"| method | {' | '.join(COLUMNS.values())} | verdict |", f"|{'---|' * (len(COLUMNS) + 2)}", *lines, ""]
    text += ["## Why", "", *reasons, ""] if reasons else []
    text += ["## Not run", "", *(f"* {name}: {why}" for name, why in refused.items()), ""] if refused else []
    text += [f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}.", ""]
    return "\n".join(text)


def main() -> None:
    """Run everything, or one method (`--one`, used for the processes of their own)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path(".demo") / "methods-mini")
    parser.add_argument("--one", help="run one method and write its result file")
    parser.add_argument("--only", nargs="*", help="these methods alone")
    args = parser.parse_args()
    folder = args.output_dir.resolve()
    if args.one:
        try:
            write_json(folder / f"{args.one}.json", {"rows": run_method(args.one, folder)})
        except UserError as error:
            write_json(folder / f"{args.one}.json", {"refused": str(error.faults[0])})
        return
    prepare(folder)
    results, refused = {}, {}
    for method in args.only or methods():
        print(f"==> {method}", flush=True)
        command = [sys.executable, "-m", "benchmarks.methods_mini", "--one", method, "--output-dir", str(folder)]
        subprocess.run(command, cwd=ROOT, check=False)
        path = folder / f"{method}.json"
        outcome = read_json(path) if path.is_file() else {"refused": "the process failed"}
        if "rows" in outcome:
            results[method] = outcome["rows"]
        else:
            refused[method] = outcome["refused"]
    baselines = {
        name: [read_json(folder / f"seed{seed}" / f"{name}_eval" / "TOFU_SUMMARY.json") for seed in SEEDS] for name in ("full", "retain90")
    }
    write_text(PAGE, page(results, refused, baselines))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
