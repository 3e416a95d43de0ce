"""Every method on the embedded benchmark with three seeds: writes docs/results/methods-mini.md.

For each seed a full and a retain model are trained. Each method starts from the seed's full model and is
compared with the seed's retain model. Each run is a separate process, so that its peak memory does not
include other runs. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from benchmarks.methods_page import METRICS, write_pages
from benchmarks.mini_settings import NOT_RUN, setting_of
from expunge.config.location import configs_dir
from expunge.config.validate import load_config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.pipelines import alternates, evaluate
from expunge.pipelines.procedure_run import run_procedure
from expunge.pipelines.training_run import run_training

DOCS = Path(__file__).resolve().parents[1] / "docs"
SEEDS = (0, 1, 2)
BASELINES = ("full", "retain90")


def choices(group: str) -> list[str]:
    """The names in a config group."""
    return sorted(path.stem for path in (configs_dir() / group).glob("*.yaml") if path.stem != "none")


def prepare(folder: Path, seed: int) -> None:
    """Train and evaluate the full and the retain model of a seed, unless this is done."""
    home = folder / f"seed{seed}"
    split = "data.train.MINI_full.args.hf_args.name=retain90"
    for name, extra in (("retain90", [split]), ("full", [])):
        run_training(
            load_config(
                "train.yaml", ["experiment=finetune/mini/default", *extra, *_common(home / name, seed)]
            )
        )
        logs = [] if name == "retain90" else [f"retain_logs_path={home / 'retain90_eval' / 'TOFU_EVAL.json'}"]
        model = f"model.model_args.pretrained_model_name_or_path={home / name}"
        evaluate.run(
            load_config(
                "eval.yaml",
                ["experiment=eval/mini/default", model, *logs, *_common(home / f"{name}_eval", seed)],
            )
        )


def run_method(method: str, folder: Path, seed: int) -> None:
    """Unlearn with one method or procedure from a seed's full model; write metrics, seconds, peak memory."""
    home = folder / f"seed{seed}"
    setting = setting_of(method, partial(_alternates, home, seed))
    # The stages are kept, because their logs are read below.
    chosen = (
        [f"trainer={method}"]
        if method in choices("trainer")
        else [f"procedure={method}", "procedure.keep_stages=true"]
    )
    # Retraining starts from the weights that the full model was trained from.
    start = "expunge/mini" if method == "retrain" else home / "full"
    overrides = [
        f"experiment=unlearn/mini/{setting.experiment}",
        *chosen,
        f"model.model_args.pretrained_model_name_or_path={start}",
        f"retain_logs_path={home / 'retain90_eval' / 'TOFU_EVAL.json'}",
        *setting.overrides,
        *_common(home / method, seed),
    ]
    try:
        cfg = load_config("unlearn.yaml", overrides)
        record = run_procedure(cfg) if cfg.get("procedure") else run_training(cfg)
    except UserError as error:
        write_json(_result(folder, method, seed), {"refused": str(error.faults[0])})
        return
    records = [
        json.loads(line)
        for path in sorted((home / method).rglob("log.jsonl"))
        for line in path.read_text().splitlines()
    ]
    seconds = sum(item["train_runtime"] for item in records if "train_runtime" in item)
    peak = max(item["peak_memory_mb"] for item in records if "peak_memory_mb" in item)
    metrics = {name: record.metrics.get(name) for name in METRICS}
    write_json(_result(folder, method, seed), {**metrics, "seconds": seconds, "peak_memory_mb": peak})


def _alternates(home: Path, seed: int, novice_of: str | None) -> Path:
    """Answers sampled from the full model: plain ones for AltPO, steered ones about a concept for ELM."""
    path = home / ("alternates.json" if novice_of is None else "alternates-novice.json")
    if not path.is_file():
        model = f"model.model_args.pretrained_model_name_or_path={home / 'full'}"
        cfg = load_config(
            "unlearn.yaml",
            [
                "experiment=unlearn/mini/default",
                "trainer=GradAscent",
                model,
                *_common(home / "sampled", seed),
            ],
        )
        alternates.run(cfg, path, max_new_tokens=48, novice_of=novice_of)
    return path


def _common(folder: Path, seed: int) -> list[str]:
    return [f"task_name={folder.name}", f"paths.output_dir={folder}", f"seed={seed}"]


def _result(folder: Path, method: str, seed: int) -> Path:
    return folder / f"seed{seed}" / f"{method}.json"


def apart(function: object, *arguments: object) -> int:
    """Call a function in a forked process, which has the imports of this process; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    return process.exitcode or 0


def main() -> None:
    """Do the runs that are not finished, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path(".demo") / "methods-mini")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="only these methods; the rows of the others on the page stay the same",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.output_dir.resolve()
    table = DOCS / "results" / "methods-mini.json"
    found = read_json(table) if table.is_file() else {"rows": {}}
    known = [name for name in (*choices("trainer"), *choices("procedure")) if name not in NOT_RUN]
    for name in args.only or ():
        if name not in known:
            sys.exit(
                f"{name} is not run here: {NOT_RUN[name]}"
                if name in NOT_RUN
                else f"there is no method {name}; the methods are {', '.join(known)}"
            )
    for seed in SEEDS:
        if apart(prepare, folder, seed):
            sys.exit(f"the models of seed {seed} could not be trained")
    for method in args.only or known:
        for seed in SEEDS:
            path = _result(folder, method, seed)
            if not path.is_file():
                print(f"==> {method}, seed {seed}", flush=True)
                if code := apart(run_method, method, folder, seed):
                    sys.exit(f"{method}, seed {seed}: the process ended with exit code {code}")
        found["rows"][method] = [read_json(_result(folder, method, seed)) for seed in SEEDS]
    for name in BASELINES:
        found["rows"][name] = [
            read_json(folder / f"seed{seed}" / f"{name}_eval" / "TOFU_SUMMARY.json") for seed in SEEDS
        ]
    found["rows"] = {name: found["rows"][name] for name in (*BASELINES, *known) if name in found["rows"]}
    write_json(table, found)
    write_pages(found["rows"], DOCS)
    print(f"wrote {DOCS / 'results' / 'methods-mini.md'} and the methods' pages")


if __name__ == "__main__":
    main()
