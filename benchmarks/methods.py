"""Step time and peak memory of every method, relative to finetuning on the retain rows only."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.comparison import Comparison
from benchmarks.isolated import best_of
from benchmarks.mini_settings import NOT_RUN, setting_of
from expunge.config.location import configs_dir

BASELINE = "FT"
ALTERNATES = Path("alternates.json")


def compare(quick: bool) -> Comparison:
    """A few steps of each method on the same model and rows, each in separate processes."""
    names = sorted(
        path.stem for path in (configs_dir() / "trainer").glob("*.yaml") if path.stem not in NOT_RUN
    )
    names = [BASELINE, *(["NPO", "GradAscent"] if quick else [name for name in names if name != BASELINE])]
    model = (
        {"hidden": 64, "layers": 2, "vocabulary": 1024}
        if quick
        else {"hidden": 256, "layers": 4, "vocabulary": 8192}
    )
    work = {"batch_size": 4, "length": 32 if quick else 96, "steps": 3 if quick else 5}
    found = best_of(
        1 if quick else 2,
        {name: ("benchmarks.methods:measure", {"method": name, **model, **work}) for name in names},
    )
    return comparison(found, {**model, **work})


def comparison(found: Mapping[str, Mapping[str, float]], settings: Mapping[str, int]) -> Comparison:
    """The table of the results of `measure`."""
    base = found[BASELINE]
    table = {
        name: {
            "sides": values["sides"],
            "step time / FT": values["seconds_per_step"] / base["seconds_per_step"],
            "peak memory / FT": values["peak_memory_mb"] / base["peak_memory_mb"],
            "cached reference": values["cached"],
            "frozen copy": values["frozen"],
            "seconds_per_step": values["seconds_per_step"],
            "peak_memory_mb": values["peak_memory_mb"],
        }
        for name, values in found.items()
    }
    remarks = [
        "Sides = how many of forget, retain and alternate rows a step computes; FT computes one. Cached = "
        "the reference's log-probs were written before the first step. Frozen = a copy of the model is in "
        "memory and runs in every step.",
        "All steps belong to the first epoch: there the retain term of the `_epoch` schedules has weight 0 "
        "and is not computed. RMU and adaptive RMU read the first layer, so the layers above it are not "
        "back-propagated. A process without a model takes half of the memory; on a large model the "
        "differences are larger.",
        "Methods that do the same work (FT, CL, RL, GradAscent; GradDiff, GA_FT; almost the same: WGA, "
        "SatImp, SimNPO) show how much two measurements differ.",
    ]
    return Comparison(
        "Every method against finetuning (FT)",
        {**settings, "dtype": "float32", "optimizer": "AdamW"},
        table,
        [],
        remarks,
    )


def measure(
    method: str, hidden: int, layers: int, vocabulary: int, batch_size: int, length: int, steps: int
) -> dict[str, float]:
    """In a separate process: a few steps of a method with its configuration."""
    from benchmarks import workload
    from expunge.config.validate import load_config
    from expunge.methods.objective import build_objective
    from expunge.models.reference import CachedReference, FrozenCopy, plan_reference
    from expunge.pipelines.assemble import text_of

    # The rows are random, but validation needs a configuration with alternates if the method reads them.
    overrides = [
        text for text in setting_of(method, lambda _: ALTERNATES).overrides if text.startswith("trainer.")
    ]
    cfg = load_config(
        "unlearn.yaml", ["experiment=unlearn/mini/idk", f"trainer={method}", "task_name=x", *overrides]
    )
    objective = build_objective(cfg.get("trainer.handler"), cfg.section("trainer.method_args"), cfg.switches)
    model = workload.llama(hidden, layers, vocabulary)
    objective.prepare(model, 0, text_of(cfg, []).tokenizer)
    lengths = (length, length * 3 // 4, length // 2, length)
    forget = workload.dataset(batch_size * steps, "forget", vocabulary, lengths, alternates=True)
    retain = workload.dataset(batch_size * steps, "retain", vocabulary, lengths)
    plan = plan_reference(objective.needs)
    views = {"forget": forget.encoded, "retain": retain.encoded, "alternate": forget.alternates or []}
    wanted = {need.side for need in objective.reference_needs}
    with tempfile.TemporaryDirectory() as folder:
        reference: CachedReference | FrozenCopy | None = None
        if plan == "frozen":
            reference = FrozenCopy(model, hidden=objective.hidden)
        elif plan == "cached":
            asked = {side: rows for side, rows in views.items() if side in wanted}
            reference = CachedReference.compute(
                model, asked, Path(folder), pad_id=workload.PAD, max_tokens=batch_size * length
            )
        found = workload.unlearn(
            model, forget, retain, objective=objective, batch_size=batch_size, reference=reference
        )
    return {
        "sides": len(objective.sides),
        "cached": float(plan == "cached"),
        "frozen": float(plan == "frozen"),
        **found,
    }
