"""The names and places of the files in a run's folder: ours, or those of another tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from expunge.core.errors import UserError
from expunge.core.files import read_json

RECORD_FILE = "run.json"
TRAINED_FILE = "trained.json"
STEPS = "evals"
"""Folder of the evaluations during training, with one folder per step; the same in every layout."""


@dataclass(frozen=True)
class RunLayout:
    """The names of a run's files; every writer and reader of these files uses them.

    Attributes:
        name: value of `run_layout`.
        config: file of the resolved configuration.
        log: file of the log records; JSON Lines if it ends in `.jsonl`, else one JSON array.
        model: folder of the final model, its tokenizer and the checkpoints; "" = the run's folder.
        boards: folder of TensorBoard's files; None = the default of transformers: `runs/` beside the
            checkpoints.
        evals: folder of the evaluation after training; "" = the run's folder. The files of an evaluation run
            are always in the run's folder.
        evaluation: file name of a suite's values per row; `{suite}` and `{SUITE}` stand for the suite's name.
        summary: file name of a suite's aggregates; None = they are only in the evaluation file.
        renamed: other names of suites in file names.
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
        """The file of a run's log records."""
        return run / self.log

    def model_folder(self, run: Path) -> Path:
        """The folder of a run's model, tokenizer and checkpoints."""
        return run / self.model

    def results_folder(self, run: Path) -> Path:
        """The folder of a training run's final evaluation."""
        return run / self.evals

    def eval_file(self, folder: Path, suite: str) -> Path:
        """A suite's file with every metric, row by row."""
        return folder / self._named(self.evaluation, suite)

    def summary_file(self, folder: Path, suite: str) -> Path | None:
        """A suite's file of metric -> aggregate; None if the layout has no such file."""
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
    """The layout of the run in a folder; None if the folder holds no run.

    A model's folder has a `config.json` too, so the content of the file is checked.
    """
    if (folder / EXPUNGE.config).is_file():
        return EXPUNGE
    try:
        content = read_json(folder / SOUL.config)
    except UserError:
        return None
    return SOUL if isinstance(content, dict) and {"identity", "overrides", "config"} <= set(content) else None


def model_folder_of(folder: Path) -> Path:
    """The folder of the model that a run has trained; `folder` itself if it holds no run."""
    layout = layout_of(folder) if folder.is_dir() else None
    return folder if layout is None else layout.model_folder(folder)


def result_files(folder: Path, suite: str) -> Iterator[tuple[Path, Path | None]]:
    """The possible files of a suite's evaluation in a run's folder: (values per row, aggregates).

    Folders that open-unlearning wrote are read in the same way.
    """
    for layout in LAYOUTS.values():
        for home in dict.fromkeys((folder, layout.results_folder(folder))):
            yield layout.eval_file(home, suite), layout.summary_file(home, suite)
