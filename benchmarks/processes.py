"""`python -m benchmarks.processes`: one process against two, on CPUs with one thread each.

Three comparisons, each of documented command lines under `torchrun`: the token pass of an evaluation; the
memory of a training with whole weights against that with split ones (FSDP2, see `tests/fsdp_on_cpu.py`),
measured and planned; and a training step with and without `parallel=ddp` in one process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.comparison import Comparison, Ratio, machine
from expunge.config.validate import load_config
from expunge.data import mini
from expunge.pipelines import plan

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
RUN = ("--config-name=unlearn.yaml", "experiment=unlearn/mini/default", "trainer=NPO", "task_name=x",
       "eval=null",
       "trainer.args.report_to=none", "++trainer.args.use_cpu=true", "trainer.args.max_steps=6",
       "trainer.args.logging_steps=1", "trainer.args.save_strategy=no")  # fmt: skip
EVAL = ("experiment=eval/mini/default", "task_name=x")
IMPORTS = "import resource, expunge.pipelines.training_run;" \
          "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # fmt: skip


def model_in(folder: Path, **sizes: int) -> str:
    """A random model with the tokenizer of the embedded benchmark, as an override."""
    config = AutoConfig.from_pretrained(mini.model_folder(), **sizes)
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM  # untyped in transformers
    made.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(mini.model_folder()).save_pretrained(folder)
    return f"model.model_args.pretrained_model_name_or_path={folder}"


def launched(ranks: int, script: str, out: Path, *words: str, on_cpu: bool = False) -> Path:
    """Run a script in several processes; 0 = without a launcher. Returns its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", port]
    stand_in = [str(ROOT / "tests" / "fsdp_on_cpu.py")] if on_cpu else []
    command = [sys.executable, *(launcher if ranks else []), *stand_in, str(ROOT / "src" / script), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, f"paths.output_dir={out}"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return out


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def compare_evaluation(folder: Path) -> Comparison:
    """The token pass of the TOFU suite on the embedded benchmark."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8}
    model, found = model_in(folder / "model", **sizes), {}
    for ranks in (1, 2):
        out = launched(ranks, "eval.py", folder / str(ranks), *EVAL, model)
        about = json.loads((out / "TOFU_EVAL.json").read_text())["_about"]["cost"]
        found[f"{ranks} process(es)"] = {f"{kind}_seconds": cost["seconds"] for kind, cost in about.items()}
    one, two = found.values()
    ratios = [Ratio(f"{kind}, 1 / 2 processes", one[kind] / two[kind]) for kind in one if two[kind]]
    tokens = next(ratio for ratio in ratios if ratio.name.startswith("tokens"))
    ratios[ratios.index(tokens)] = Ratio(tokens.name, tokens.value, "at least 1.7", tokens.value >= 1.7)
    return Comparison("Evaluation on one and two processes", sizes, found, ratios)


def compare_memory(folder: Path) -> Comparison:
    """Peak resident memory of the first process above that of its imports."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 8}
    model, found = model_in(folder / "model", **sizes), {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=True
    )
    imports = int(said.stdout) / 1024
    for ranks, engine in ((0, "ddp"), (2, "fsdp2")):
        rows = f"trainer.args.per_device_train_batch_size={4 // max(1, ranks)}"
        words = (*RUN, model, rows, f"parallel={engine}")
        out = launched(ranks, "train.py", folder / engine, *words, on_cpu=bool(ranks))
        (line,) = plan.run(load_config("unlearn", words[1:]), ranks=[max(1, ranks)]).lines
        measured = max(record["peak_memory_mb"] for record in records(out)) - imports
        found[f"{engine}, {max(1, ranks)} process(es)"] = {
            "measured_mib": measured,
            "planned_mib": line.parts.total / MIB,
        }
    one, two = found.values()
    ratios = [
        Ratio("measured, split / whole", two["measured_mib"] / one["measured_mib"]),
        Ratio("planned, split / whole", two["planned_mib"] / one["planned_mib"]),
    ]
    remarks = ["Every process loads the whole model before it is split, and the peak counts that."]
    return Comparison("Memory of a process, whole and split weights", sizes, found, ratios, remarks)


def compare_overhead(folder: Path) -> Comparison:
    """A training step of one process, with and without the engine."""
    sizes = {"hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 6}
    model, found = model_in(folder / "model", **sizes), {}
    for name, words in (("none", ()), ("ddp", ("parallel=ddp",))):
        out = launched(0, "train.py", folder / name, *RUN, model, *words)
        seconds = [record["seconds"] for record in records(out) if "loss" in record]
        found[name] = {"seconds_per_step": (seconds[-1] - seconds[0]) / (len(seconds) - 1)}
    one, two = (values["seconds_per_step"] for values in found.values())
    return Comparison(
        "The engine ddp in one process", sizes, found, [Ratio("step, parallel=ddp / none", two / one)]
    )


def main() -> None:
    """Print the comparisons as sections of Markdown."""
    print("; ".join(f"{name} {value}" for name, value in machine().items()))
    with tempfile.TemporaryDirectory() as name:
        for number, compare in enumerate((compare_evaluation, compare_memory, compare_overhead)):
            print("\n" + compare(Path(name) / str(number)).markdown(), flush=True)


if __name__ == "__main__":
    main()
