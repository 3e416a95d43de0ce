"""Faults of a user on the command line: exit code 2, a message with input and solution, and no files left."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_runs import Outcome, copied, model_is, names, read, write_rows
from transformers import PreTrainedModel

Run = Callable[..., Outcome]
ROWS = [
    {"question": f"Who wrote book {number}?", "answer": f"Nobody wrote book {number}."} for number in range(6)
]
FORGET = "data.forget.MINI_forget.args"
VIEW = "eval.tofu.views.forget_answer"


def refused(outcome: Outcome, *words: str) -> None:
    """Exit code 2, a message that only lists faults and has these words, and no run folder."""
    assert outcome.code == 2, outcome.stderr
    for word in words:
        assert word in outcome.stderr, f"{word!r} is not in: {outcome.stderr}"
    assert "Traceback" not in outcome.stderr
    assert not outcome.out.exists()


NAMES = {
    "method": (
        ["trainer=NPOO"],
        ["trainer=NPOO: unknown method 'NPOO'", "did you mean 'NPO'?", "GradDiff, "],
    ),
    "split": (
        ["forget_split=forgt10", "retain_split=retain90"],
        ["split 'forgt10'", "did you mean 'forget10'?", "retain95"],
    ),
    "split of an evaluation": (
        ["eval=few", "forget_split=forget10", f"{VIEW}.hf_args.name=retain_pertubed"],
        ["view 'forget_answer'", "'retain_pertubed'", "did you mean 'retain_perturbed'?"],
    ),
    "metric": (
        ["eval=few", "eval.tofu.metrics.forget_qualty.summary=false"],
        [
            "eval.tofu.metrics.forget_qualty: unknown metric",
            "did you mean 'forget_quality'?",
            "forget_Q_A_ROUGE",
        ],
    ),
    "metric to switch off": (
        ["eval=few", "~eval.tofu.metrics.forget_qualty"],
        ["did you mean 'eval.tofu.metrics.forget_quality'?"],
    ),
    "metric's function": (
        ["eval=few", "eval.tofu.metrics.x.handler=expunge.evaluation.metrics.rouge:rogue"],
        ["'rogue'", "did you mean 'rouge'?"],
    ),
    "key": (
        ["forgt_split=forget05"],
        ["forgt_split=forget05: there is no key", "did you mean 'forget_split'?"],
    ),
    "key of trainer.args": (
        ["trainer.args.lerning_rate=1"],
        ["trainer.args.lerning_rate=1", "'learning_rate'"],
    ),
    "hyper-parameter": (["trainer.method_args.betta=3"], ["npo takes no 'betta'", "did you mean 'beta'?"]),
}


@pytest.mark.parametrize("which", NAMES)
def test_unknown_name(which: str, unlearn: Run) -> None:
    overrides, words = NAMES[which]
    refused(unlearn(*overrides), *words)


NUMBERS = {
    "learning rate": (
        ["trainer.args.learning_rate=0"],
        ["trainer.args.learning_rate=0: must be a number above 0"],
    ),
    "epochs": (
        ["trainer.args.num_train_epochs=-1", "trainer.args.max_steps=-1"],
        ["trainer.args.num_train_epochs=-1: must be a number above 0"],
    ),
    "batch": (
        ["trainer.args.per_device_train_batch_size=0"],
        ["per_device_train_batch_size=0: must be a whole number above 0"],
    ),
    "batch of an evaluation": (
        ["eval=few", "eval.tofu.batch_size=0"],
        ["eval.tofu.batch_size=0: must be a whole number above 0"],
    ),
    "seed": (["seed=one"], ["seed=one: must be a whole number"]),
}


@pytest.mark.parametrize("which", NUMBERS)
def test_impossible_number(which: str, unlearn: Run) -> None:
    overrides, words = NUMBERS[which]
    refused(unlearn(*overrides), *words)


def test_missing_files_say_where_they_were_looked_for(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    refused(
        unlearn(f"{FORGET}.hf_args.path={tmp_path}/no.json"),
        f"{FORGET}.hf_args.path=",
        f"looked for {tmp_path}/no.json",
    )
    logs = f"retain_logs_path={tmp_path}/TOFU_EVAL.json"
    refused(unlearn("eval=few", logs), f"{logs}: no such file", f"looked for {tmp_path}/TOFU_EVAL.json")
    refused(evaluate(logs), f"{logs}: no such file")
    refused(
        unlearn(model_is(tmp_path / "none")),
        f"{model_is(tmp_path / 'none')}: no such folder",
        f"looked for {tmp_path}/none",
    )


def test_retain_logs_of_another_split(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    other = evaluate("forget_split=forget05", out=tmp_path / "other")
    assert other.code == 0, other.stderr
    logs = f"retain_logs_path={other.out / 'TOFU_EVAL.json'}"
    for run in (evaluate(logs), unlearn("eval=few", logs)):
        refused(
            run,
            f"{other.out / 'TOFU_EVAL.json'} is of forget05, this run is of forget10",
            "evaluate the retain model on forget10",
        )

    # A file without our header is recognised by its rows; what was collected so far is kept for the next
    # command.
    bare = tmp_path / "bare.json"
    bare.write_text(
        json.dumps({"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": {"0": {"score": 1.0}}}})
    )
    late = evaluate(f"retain_logs_path={bare}")
    assert late.code == 2
    assert "forget_truth_ratio has 1 rows, this run has 4" in late.stderr
    assert names(late.out) == {"run.json", "run_config.json", "tables"}
    assert read(late.out / "run.json")["status"] == "failed"
    assert evaluate().code == 0


def test_row_without_the_key(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.json", [*ROWS[:3], {"question": "And this one?"}, *ROWS[3:]])
    refused(
        unlearn(f"{FORGET}.hf_args.path={file}"),
        f"row 3 (counting from 0) of {file} has no 'answer'",
        "it has: question",
    )
    refused(
        evaluate(f"{VIEW}.hf_args.path={file}", f"{VIEW}.hf_args.split=train"),
        "row 3 (",
        "under 'answer'",
        "it has: question",
    )


def test_answer_that_is_cut_off_completely(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    long = {"question": "Who " * 60, "answer": "Nobody."}
    file = write_rows(tmp_path / "rows.json", [*ROWS, long])
    from expunge.data.rows import row_ids

    row = row_ids([long])[0]
    message = f"row {row}: max_length=40 cuts the whole answer away"
    refused(
        unlearn(f"{FORGET}.hf_args.path={file}", f"{FORGET}.max_length=40"), message, "raise max_length to"
    )
    view = (f"{VIEW}.hf_args.path={file}", f"{VIEW}.hf_args.split=train", f"{VIEW}.max_length=40")
    refused(evaluate(*view), message)
    refused(unlearn("eval=few", *view), message)


def test_empty_split(unlearn: Run, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.json", [])
    refused(unlearn(f"{FORGET}.hf_args.path={file}"), "'forget10' is empty", f"no row in {file}")
    refused(unlearn(f'{FORGET}.hf_args.split="train[500:]"'), "'train[500:]'", "keeps none of its 40 rows")


def test_forget_and_retain_that_overlap(unlearn: Run) -> None:
    refused(
        unlearn("retain_split=full"),
        "share 40 of 40 forget rows",
        "row 0 of forget10, row 360 of",
        "forget10 with retain90",
    )


def test_output_folder_of_something_else(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    for run in (unlearn, evaluate):
        for overwrite in ("false", "true"):
            outcome = run(f"overwrite={overwrite}", out=tmp_path / "thesis")
            assert outcome.code == 2
            assert f"{tmp_path / 'thesis'} is not empty and holds no run" in outcome.stderr
    assert names(tmp_path / "thesis") == {"chapter.txt"}
    judged = evaluate(out=tmp_path / "judged")
    assert judged.code == 0, judged.stderr
    other = unlearn(out=judged.out)
    assert other.code == 2
    assert "mode: 'eval' there, 'unlearn' now" in other.stderr


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_from_the_start(unlearn: Run, evaluate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.core.files.os.fsync", full_disk)
    for run in (unlearn, evaluate):
        refused(run(), "no space left on the disk while writing", "run_config.json", "paths.output_dir")


def test_disk_full_at_the_end(unlearn: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full_disk)
        outcome = unlearn("trainer=GradAscent")
    assert outcome.code == 2
    assert f"no space left on the disk while writing {outcome.out}" in outcome.stderr
    assert "trained.json" not in names(outcome.out)
    assert read(outcome.out / "run.json")["status"] == "failed"
    assert unlearn("trainer=GradAscent").code == 0


def test_disk_full_in_an_evaluation(evaluate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("expunge.evaluation.table_store.save_file", full_disk)
        refused(evaluate(), "no space left on the disk")
    assert evaluate().code == 0


SAVING = ("trainer=GradAscent", "trainer.args.save_strategy=steps", "trainer.args.save_steps=1")


def test_corrupted_checkpoint(unlearn: Run, tmp_path: Path) -> None:
    done = unlearn(*SAVING)
    assert done.code == 0, done.stderr
    (done.out / "trained.json").unlink()
    weights = done.out / "checkpoint-2" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    before = (done.out / "log.jsonl").read_bytes()
    again = unlearn(*SAVING)
    assert again.code == 2
    assert f"the checkpoint {done.out / 'checkpoint-2'} is damaged" in again.stderr
    assert "model.safetensors" in again.stderr
    assert (done.out / "log.jsonl").read_bytes() == before
    # The solution is an older, complete checkpoint, given by name, or to remove the damaged one.
    asked = unlearn(*SAVING, f"trainer.args.resume_from_checkpoint={done.out / 'checkpoint-1'}")
    assert asked.code == 0, asked.stderr

    here = tmp_path / "elsewhere"
    for given, words in (
        (done.out / "checkpoint-7", "no such folder"),
        (done.out / "pairs", "its name is not checkpoint-N"),
    ):
        refused(unlearn(*SAVING, f"trainer.args.resume_from_checkpoint={given}", out=here), str(given), words)
    (done.out / "checkpoint-1" / ".complete").unlink()
    refused(
        unlearn(*SAVING, f"trainer.args.resume_from_checkpoint={done.out / 'checkpoint-1'}", out=here),
        "never finished",
        "checkpoint-2",
    )


def test_what_is_no_model(start_model: Path, unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    bare = copied(start_model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    cut = copied(start_model, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((start_model / "model.safetensors").read_bytes()[:5000])
    foreign = copied(start_model, tmp_path / "foreign")
    (foreign / "config.json").write_text('{"model_type": "nonesuch"}')
    for folder, words in (
        (tmp_path / "notes", "no config.json"),
        (bare, "model.safetensors"),
        (cut, "cannot load"),
        (foreign, "nonesuch"),
    ):
        for run in (unlearn, evaluate):
            refused(run(model_is(folder)), str(folder), words)


def test_tokenizer_that_cannot_serve(start_model: Path, unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    key = "model.tokenizer_args.pretrained_model_name_or_path"
    plain = copied(start_model, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    damaged = copied(start_model, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{}")
    for run in (unlearn, evaluate):
        refused(
            run(f"{key}={plain}"),
            str(plain),
            "has no chat template",
            "apply_chat_template=false",
            "user_start_tag",
        )
        refused(run(f"{key}={damaged}"), f"cannot load {damaged}")
        refused(run(f"{key}={tmp_path}"), f"{key}={tmp_path}: not a folder with a tokenizer")


def test_nothing_to_evaluate(unlearn: Run, expunge: Run, start_model: Path) -> None:
    refused(
        unlearn("trainer=GradAscent", "trainer.args.eval_strategy=steps"),
        "trainer.args.eval_strategy=steps: no evaluation suite is configured",
        "or set trainer.args.eval_strategy=no",
    )
    refused(
        expunge("eval", "experiment=eval/mini/default", "eval=null", model_is(start_model)),
        "nothing to evaluate",
        "eval=tofu",
    )


def test_all_faults_are_reported_together(unlearn: Run, evaluate: Run, tmp_path: Path) -> None:
    """First the faults of the configuration; if there are none, the faults of everything that is read."""
    refused(
        unlearn(
            "eval=few", "trainer.args.lerning_rate=1", "trainer.args.learning_rate=0",
            "trainer.args.num_train_epochs=0",
            "trainer.args.max_steps=-1", "trainer.args.per_device_train_batch_size=0",
            "trainer.method_args.betta=1", "forgt_split=x",
            f"retain_logs_path={tmp_path}/none.json", model_is(tmp_path / "none"),
            "eval.tofu.metrics.rogue.summary=true",
            "data.anchor=forgt",
        ),
        "error: 10 things are wrong", "lerning_rate", "learning_rate=0", "num_train_epochs=0", "batch_size=0",
        "betta", "forgt_split",
        "none.json", "no such folder", "rogue", "data.anchor=forgt",
    )  # fmt: skip
    keyless = write_rows(tmp_path / "keyless.json", [{"question": "And this one?"}])
    broken = tmp_path / "broken.json"
    broken.write_text('[{"question": "Is this JSON?", "answer": ')
    other = tmp_path / "logs.json"
    other.write_text(json.dumps({"_about": {"forget_split": "forget05"}, "x": {"agg_value": 0.5}}))
    refused(
        unlearn(
            "eval=few", f"{FORGET}.hf_args.path={keyless}",
            f"data.retain.MINI_retain.args.hf_args.path={broken}",
            f"{VIEW}.hf_args.name=forgt10_perturbed", f"retain_logs_path={other}",
        ),
        f"row 0 (counting from 0) of {keyless}", str(broken), "'forgt10_perturbed'",
        f"{other} is of forget05",
    )  # fmt: skip


def test_a_faulty_command_removes_no_folder_that_was_there(unlearn: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outcome = unlearn(f"trainer.args.resume_from_checkpoint={tmp_path}")
    assert outcome.code == 2
    assert names(tmp_path / "run") == set()
    shutil.rmtree(tmp_path / "run")
