"""Where the files of a run lie in its folder: under our own names, or under those of another tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from expunge.core.errors import UserError
from expunge.core.files import read_json

RECORD_FILE = "run.json"
TRAINED_FILE = "trained.json"
STEPS = "evals"
"""Folder of the evaluations during training, one folder a step, in every layout."""


@dataclass(frozen=True)
class RunLayout:
    """The names of a run's files; whoever writes or reads one asks here.

    Attributes:
        name: value of `run_layout`.
        config: file of the resolved configuration.
        log: file of the records; JSON Lines where it ends in `.jsonl`, else one JSON array.
        model: folder of the final model, its tokenizer and the checkpoints; "" = the run's folder itself.
        boards: folder of TensorBoard's files; None = where transformers puts them, `runs/` beside the
            checkpoints.
        evals: folder of the evaluation after training; "" = the run's folder itself. An evaluation run's own
            files are always there.
        evaluation: name of a suite's file of values row by row; `{suite}` and `{SUITE}` stand for the suite's
            name.
        summary: name of a suite's file of aggregates; None = they are in the other file alone.
        renamed: suites whose files go by another name.
    """

    name: str
    config: str
    log: str
    model: str = ""
    boards: str | None = None
    evals: str = ""
    evaluation: str = "{suite}.json"
    summary: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def log_file(self, run: Path) -> Path:
        """The records of a run."""
        return run / self.log

    def model_folder(self, run: Path) -> Path:
        """Where a run keeps its model, tokenizer and checkpoints."""
        return run / self.model

    def results_folder(self, run: Path) -> Path:
        """Where a training run keeps its final evaluation."""
        return run / self.evals

    def eval_file(self, folder: Path, suite: str) -> Path:
        """A suite's file of every metric, row by row."""
        return folder / self._named(self.evaluation, suite)

    def summary_file(self, folder: Path, suite: str) -> Path | None:
        """A suite's file of metric -> aggregate; None where the layout has none."""
        return None if self.summary is None else folder / self._named(self.summary, suite)

    def _named(self, pattern: str, suite: str) -> str:
        name = self.renamed.get(suite, suite)
        return pattern.format(suite=name, SUITE=name.upper())


EXPUNGE = RunLayout(
    "expunge",
    "run_config.json",
    "log.jsonl",
    evals="evals",
    evaluation="{SUITE}_EVAL.json",
    summary="{SUITE}_SUMMARY.json",
)
SOUL = RunLayout(
    "soul", "config.json", "log.json", model="checkpoints", boards="logs", renamed={"toxicity": "toxic"}
)
LAYOUTS = {layout.name: layout for layout in (EXPUNGE, SOUL)}


def layout_of(folder: Path) -> RunLayout | None:
    """The layout of the run that a folder holds; None where it holds none.

    A model's folder has a `config.json` too: a run's is known by what it says.
    """
    if (folder / EXPUNGE.config).is_file():
        return EXPUNGE
    return SOUL if _is_config_of_run(folder / SOUL.config) else None


def model_folder_of(folder: Path) -> Path:
    """The folder of the model that a run has trained; `folder` itself where it holds no run."""
    layout = layout_of(folder) if folder.is_dir() else None
    return folder if layout is None else layout.model_folder(folder)


def result_files(folder: Path, suite: str) -> Iterator[tuple[Path, Path | None]]:
    """Where a suite's evaluation may lie in a run's folder: values row by row, and aggregates in a file of their own.

    A folder that open-unlearning wrote is read like one of ours.
    """
    for layout in LAYOUTS.values():
        for home in dict.fromkeys((folder, layout.results_folder(folder))):
            yield layout.eval_file(home, suite), layout.summary_file(home, suite)


def _is_config_of_run(path: Path) -> bool:
    try:
        content = read_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and {"identity", "overrides", "config"} <= set(content)
