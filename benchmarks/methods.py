"""Step time and peak memory of every method, relative to finetuning on the retain rows alone."""

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
    """Some steps of each method on the same model and rows, each in processes of its own."""
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
    """The table of what `measure` gave."""
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
        "Sides = how many of forget, retain and alternate rows a step computes; FT computes one. Cached = the reference's log-probs were "
        "written before the first step; frozen = a copy of the model is held, and run in every step.",
        "These are the steps of a first epoch: the retain term of the `_epoch` schedules has weight 0 there and is not computed. RMU and "
        "adaptive RMU read the first layer, so that nothing is propagated through those above it. A process without a model takes half of "
        "the memory: on a large model the differences weigh more.",
        "Methods that do the same work (FT, CL, RL, GradAscent; GradDiff, GA_FT; nearly so WGA, SatImp, SimNPO) show how far two "
        "measurements differ.",
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
    """In a process of its own: some steps of a method as its configuration has it."""
    from benchmarks import workload
    from expunge.config.validate import load_config
    from expunge.methods.objective import build_objective
    from expunge.models.reference import CachedReference, FrozenCopy, plan_reference
    from expunge.pipelines.assemble import text_of

    # The rows are random ones; what is validated has to have alternates, where the method reads some.
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
