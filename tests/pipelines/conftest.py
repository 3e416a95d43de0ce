"""Command lines in this process: the embedded benchmark, two optimizer steps, a suite of a few rows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mini_runs import QUIET, Outcome, model_is

from expunge.cli.main import main

SUITE = """\
# @package eval.tofu
# Three views of a few rows each.
forget_split: ${forget_split}
holdout_split: ${holdout_split}
retain_logs_path: ${retain_logs_path}
hf_path: expunge/mini
batch_size: 8
bootstrap: {resamples: 10, seed: 0}
generation: {max_new_tokens: 4}
views:
  forget_answer: &forget
    hf_args: {path: expunge/mini, name: "${eval.tofu.forget_split}_perturbed", split: "train[:4]"}
    answer_key: answer
    max_length: 128
  forget_paraphrased: {<<: *forget, answer_key: paraphrased_answer}
  forget_perturbed: {<<: *forget, answer_key: perturbed_answer}
metrics:
  forget_Q_A_Prob:
    handler: expunge.evaluation.metrics.probability:probability
    answers: forget_answer
  forget_Q_A_ROUGE:
    handler: expunge.evaluation.metrics.rouge:rouge
    generations: forget_answer
  paraphrased_Prob:
    handler: expunge.evaluation.metrics.probability:probability
    answers: forget_paraphrased
    summary: false
  perturbed_Prob:
    handler: expunge.evaluation.metrics.probability:probability
    answers: forget_perturbed
    summary: false
  forget_truth_ratio:
    handler: expunge.evaluation.metrics.truth_ratio:truth_ratio
    correct: paraphrased_Prob
    wrong: perturbed_Prob
  forget_quality:
    handler: expunge.evaluation.metrics.forget_quality:forget_quality
    truth_ratio: forget_truth_ratio
"""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The embedded benchmark, made once per session on one thread."""
    import transformers.trainer  # noqa: F401

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Each run collects garbage once; imported objects are frozen, so that this is quick.
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EXPUNGE_DATA", str(tmp_path_factory.mktemp("no-data")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of choices, with the suite `eval=few`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "eval").mkdir()
    (folder / "eval" / "few.yaml").write_text(SUITE)
    return folder


@pytest.fixture(scope="session")
def start_model(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finetuned model; after two steps it has learnt almost nothing."""
    out = tmp_path_factory.mktemp("start") / "full"
    argv = [
        "train",
        "experiment=finetune/mini/default",
        "task_name=full",
        f"paths.output_dir={out}",
        "trainer.args.max_steps=2",
        QUIET,
    ]
    assert main(argv) == 0
    return out


@pytest.fixture
def expunge(capsys: pytest.CaptureFixture[str], config_dir: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Run a verb on the benchmark; its folder is `tmp_path/run` unless the arguments name another."""

    def run(verb: str, *overrides: str, out: Path | None = None) -> Outcome:
        out = tmp_path / "run" if out is None else out
        capsys.readouterr()
        code = main(
            [verb, "--config-dir", str(config_dir), "task_name=run", f"paths.output_dir={out}", *overrides]
        )
        return Outcome(code, capsys.readouterr().err, out)

    return run


@pytest.fixture
def unlearn(expunge: Callable[..., Outcome], start_model: Path) -> Callable[..., Outcome]:
    """Unlearn the benchmark's forget10 in two steps; evaluate only if the arguments ask for it."""

    def run(*overrides: str, out: Path | None = None) -> Outcome:
        start = () if any("model_args.pretrained" in item for item in overrides) else (model_is(start_model),)
        suite = () if any(item.startswith("eval=") for item in overrides) else ("eval=null",)
        method = () if any(item.startswith("trainer=") for item in overrides) else ("trainer=NPO",)
        steps = () if any("max_steps" in item for item in overrides) else ("trainer.args.max_steps=2",)
        return expunge(
            "unlearn",
            "experiment=unlearn/mini/default",
            *method,
            *start,
            *suite,
            *steps,
            QUIET,
            *overrides,
            out=out,
        )

    return run


@pytest.fixture
def evaluate(expunge: Callable[..., Outcome], start_model: Path) -> Callable[..., Outcome]:
    """Evaluate the start model with the small suite."""

    def run(*overrides: str, out: Path | None = None) -> Outcome:
        start = () if any("model_args.pretrained" in item for item in overrides) else (model_is(start_model),)
        return expunge("eval", "experiment=eval/mini/default", "eval=few", *start, *overrides, out=out)

    return run
