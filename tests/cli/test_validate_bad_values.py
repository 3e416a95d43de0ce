"""`expunge validate`: a bad value gives a fault with the key as typed and exit code 2; nothing is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from expunge.cli import main as cli

RUN = ("unlearn", "experiment=unlearn/tofu/default", "task_name=x", "eval=null")
ARGS, OPTIMIZER = "trainer.method_args", "trainer.optimizer"
DATA = "data.forget.TOFU_QA_forget"
CASES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # Hyper-parameters of a method, and the weights of its terms.
    (("trainer=NPO", f"{ARGS}.beta=abc"), (f"{ARGS}.beta=abc: must be a number above 0", "default is 0.1")),
    (("trainer=NPO", f"{ARGS}.beta=-1"), (f"{ARGS}.beta=-1: must be a number above 0",)),
    (("trainer=NPO", f"{ARGS}.beta=null"), (f"{ARGS}.beta=null: must be a number above 0",)),
    (("trainer=NPO", f"{ARGS}.betta=1"), (f"{ARGS}.betta=1: npo takes no 'betta'", "did you mean 'beta'?")),
    (("trainer=NPO", f"{ARGS}.alpha=much"), (f"{ARGS}.alpha=much: must be a number of at least 0",)),
    (
        ("trainer=UNDIAL", f"{ARGS}.mask=labls"),
        (f"{ARGS}.mask=labls: must be one of", "did you mean 'labels'?"),
    ),
    (("trainer=RMU", f"{ARGS}.ratio=bach"), (f"{ARGS}.ratio=bach: must be one of", "did you mean 'batch'?")),
    (("trainer=RMU", f"{ARGS}.trainable_params_regex=3"), ("=3: must be a string or a list of strings",)),
    (("trainer=ELM", f"{ARGS}.fluency=0"), (f"{ARGS}.concept is not given",)),
    (("trainer.handler=expunge.methods.npo:nqo",), ("trainer.handler=expunge.methods.npo:nqo", "'npo'")),
    (("trainer.handler=expunge.methods.nqo:npo",), ("there is no module 'expunge.methods.nqo'",)),
    (
        ("trainer.handler=expunge.methods.representation:squared_distance",),
        ("trainer.handler=expunge.methods.representation:squared_distance: squared_distance is not a loss",),
    ),
    # Retain term, schedule, combination.
    (
        ("trainer=NPO", "retain=kl", f"{ARGS}.retain.mask=lbels"),
        (f"{ARGS}.retain.mask=lbels: must be", "'labels'"),
    ),
    (
        ("trainer=NPO", "retain=embed_diff"),
        ("module_regex is not given", f"{ARGS}.retain.module_regex=REGEX"),
    ),
    (
        ("trainer=RMU", "retain=embed_diff", f"{ARGS}.retain.module_regex=other"),
        ("give the same pattern to both",),
    ),
    (("schedule=switch", f"{ARGS}.schedule.at=half"), (f"{ARGS}.schedule.at=half: must be a number",)),
    (
        ("schedule=switch", f"{ARGS}.schedule.att=1"),
        (f"{ARGS}.schedule.att=1: switch takes no", "did you mean 'at'?"),
    ),
    ((f"{ARGS}.schedule=rmap",), (f"{ARGS}.schedule=rmap: unknown schedule 'rmap'", "did you mean 'ramp'?")),
    (
        ("trainer=GRU", f"{ARGS}.combine.ema=2"),
        (f"{ARGS}.combine.ema=2: must be a number above 0 and at most 1",),
    ),
    ((f"{ARGS}.combine=gruu",), (f"{ARGS}.combine=gruu: unknown combination", "did you mean 'gru'?")),
    (
        ("trainer=GradAscent", "combine=gru", "retain=none"),
        ("needs the gradient of a retain term, and there is none", "retain=nll"),
    ),
    # Optimizer, rules, mask.
    (
        ("optimizer=sophia", f"{OPTIMIZER}.rho=much"),
        (f"{OPTIMIZER}.rho=much: must be a number of at least 0",),
    ),
    (
        ("optimizer=sophia", f"{OPTIMIZER}.betas=[0.9,1.5]"),
        (f"{OPTIMIZER}.betas=[0.9,1.5]: must be a list of 2",),
    ),
    (
        ("optimizer=sophia", f"{OPTIMIZER}.mode=gbn"),
        (f"{OPTIMIZER}.mode=gbn: must be one of", "did you mean 'gnb'?"),
    ),
    (
        ("optimizer=sophia", f"{OPTIMIZER}.every=0"),
        (f"{OPTIMIZER}.every=0: must be a whole number of at least 1",),
    ),
    (
        ("optimizer=adamw", f"{OPTIMIZER}.fused=maybe"),
        (f"{OPTIMIZER}.fused=maybe: must be true or false or null",),
    ),
    (
        ("optimizer=sam", f"{OPTIMIZER}.rules.sam.rho=-1"),
        (f"{OPTIMIZER}.rules.sam.rho=-1: must be a number",),
    ),
    (
        ("optimizer=random_smoothing", f"{OPTIMIZER}.rules.random_smoothing.samples=0.5"),
        ("samples=0.5: must be a whole number of at least 1",),
    ),
    (("mask=wagle", "trainer.mask.mu=small"), ("trainer.mask.mu=small: must be a number",)),
    (
        ("mask=wagle", "trainer.mask.ratio=2"),
        ("trainer.mask.ratio=2: must be a number above 0 and at most 1",),
    ),
    (("mask=magnitude", "trainer.mask.params='('"), ("not a regular expression",)),
    # TrainingArguments.
    (
        ("trainer.args.lr_scheduler_type=cosin",),
        ("trainer.args.lr_scheduler_type=cosin: must be", "'cosine'"),
    ),
    (("trainer.args.optim=adam",), ("trainer.args.optim=adam: must be one of 'adamw_torch'", "did you mean")),
    (("trainer.args.eval_strategy=stepps",), ("trainer.args.eval_strategy=stepps: must be", "'steps'")),
    (("trainer.args.dataloader_drop_last=yess",), ("dataloader_drop_last=yess: must be true or false",)),
    (
        ("trainer.args=5",),
        ("trainer.args=5: must be a section of keys and values", "trainer.args.NAME=VALUE"),
    ),
    (("data.forget=5",), ("data.forget=5: must be a section of keys and values",)),
    (("run_layout=[1]",), ("unknown run_layout '[1]'",)),
    (("trainer.method_args=5",), ("trainer.method_args=5: must be a section of keys and values",)),
    (("trainer.args.seed=abc",), ("trainer.args.seed=abc: must be a whole number",)),
    (("seed=null",), ("seed=null: must be a whole number", "for example 0")),
    (("trainer.args.save_total_limit=abc",), ("trainer.args.save_total_limit=abc: must be a whole number",)),
    (("trainer.args.max_grad_norm=nan",), ("trainer.args.max_grad_norm=nan: must be a finite number",)),
    (
        ("trainer.args.learning_rate=inf",),
        ("trainer.args.learning_rate=inf: must be a finite number above 0",),
    ),
    (("trainer.args.weight_decay={a: 1}",), ("trainer.args.weight_decay={a: 1}: must be a number",)),
    (
        ("trainer.args.report_to=tensorbord",),
        ("report_to=tensorbord: must be", "did you mean 'tensorboard'?"),
    ),
    (("trainer.args.report_to=clearml",), ("needs the package 'clearml'", "pip install clearml")),
    (
        ("trainer.args.lr_scheduler_type=polynomial", "trainer.args.lr_scheduler_kwargs.powr=2"),
        ("trainer.args.lr_scheduler_kwargs.powr=2: get_polynomial_decay", "did you mean 'power'?"),
    ),
    (
        ("trainer.args.eval_strategy=steps",),
        ("trainer.args.eval_strategy=steps: no evaluation suite is configured",),
    ),
    (("trainer.listeners=3",), ("trainer.listeners=3: must be a list",)),
    (("trainer.listener=[]",), ("trainer.listener=[]: there is no key",)),
    (("trainer=IdkNLL",), ("trainer=IdkNLL: cl reads alternate answers", "experiment=unlearn/tofu/idk")),
    (
        ("experiment=unlearn/mini/default", "trainer=IdkNLL"),
        ("experiment=unlearn/mini/idk, or data/datasets@data.forget=MINI_forget_idk",),
    ),
    # Procedures.
    (
        ("procedure=whp", "procedure.args.reinforced={learning_rate: fast, warmup_steps: -1}"),
        (
            "procedure.args.reinforced.learning_rate=fast: must be",
            "warmup_steps=-1: must be a number of at least 0",
        ),
    ),
    (
        ("procedure=whp", "procedure.args.alpha=big"),
        ("procedure.args.alpha=big: must be a number of at least 0",),
    ),
    (
        ("procedure=whp", "procedure.args.alpha=-1"),
        ("procedure.args.alpha=-1: must be a number of at least 0",),
    ),
    (("procedure=whp", "procedure.args.mode=logits"), ("procedure.args.mode=logits: mixing logits",)),
    (
        ("procedure=whp", "procedure.args.mode=label"),
        ("procedure.args.mode=label: must be 'labels'", "did you mean"),
    ),
    (("procedure=whp", "procedure.args.alhpa=1"), ("whp takes no 'alhpa'", "did you mean 'alpha'?")),
    (("procedure=whp", "procedure.handler=expunge.procedures.whp:wph"), ("did you mean 'whp'?",)),
    # Datasets.
    (
        (f"{DATA}.args.max_length=long",),
        (f"{DATA}.args.max_length=long: must be a whole number of at least 1",),
    ),
    (
        (f"{DATA}.args.max_lenght=5",),
        (f"{DATA}.args.max_lenght=5: qa takes no", "did you mean 'max_length'?"),
    ),
    ((f"{DATA}.args.question_key=3",), (f"{DATA}.args.question_key=3: must be a string",)),
    ((f"{DATA}.args.select=3",), (f"{DATA}.args.select=3: must be a section of keys and values or null",)),
    ((f"{DATA}.handler=expunge.data.datasets:qaa",), ("unknown name in expunge.data.datasets 'qaa'", "'qa'")),
    ((f"{DATA}.handler=QADatset",), ("unknown data handler 'QADatset'", "did you mean 'QADataset'?")),
    # Switches, and difficulty scores.
    (("compat.switches.npo.beta=x",), ("compat.switches.npo.beta=x: must be a number above 0",)),
    (("difficulty.max_tokens=many",), ("difficulty.max_tokens=many: must be a whole number of at least 1",)),
]


@pytest.mark.parametrize(("overrides", "said"), CASES, ids=lambda part: " ".join(part[:2])[:80])
def test_a_bad_value_is_a_fault_and_nothing_is_loaded(
    overrides: Sequence[str], said: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(sys.modules)
    assert cli.main(["validate", *RUN, *overrides]) == 2
    text = capsys.readouterr().err
    for words in said:
        assert words in text
    loaded = {
        name for name in set(sys.modules) - before if name.startswith(("torch", "transformers", "expunge."))
    }
    assert not {
        name for name in loaded if not name.startswith(("expunge.config", "expunge.core", "expunge.cli"))
    }


def test_every_fault_is_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "trainer=NPO",
        f"{ARGS}.beta=abc",
        "optimizer=sophia",
        f"{OPTIMIZER}.rho=much",
        "mask=wagle",
        "trainer.mask.mu=small",
        f"{DATA}.args.max_length=long",
        "trainer.args.lr_scheduler_type=cosin",
    )
    assert cli.main(["validate", *RUN, *given]) == 2
    text = capsys.readouterr().err
    assert text.count("must be") == 5


def test_good_values_are_bound(capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "trainer=NPO",
        f"{ARGS}.beta=0.5",
        "optimizer=sophia",
        f"{OPTIMIZER}.betas=[0.9,0.95]",
        "schedule=ramp",
    )
    more = ("mask=wagle", "trainer.args.lr_scheduler_type=cosine", "trainer.args.save_strategy=no")
    assert cli.main(["validate", *RUN, *given, *more]) == 0, capsys.readouterr().err
