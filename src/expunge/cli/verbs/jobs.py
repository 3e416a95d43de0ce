"""`expunge jobs`: run the command lines of a file, one after the other, side by side, or on a cluster."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from expunge.cli.console import print_table, setup_logging
from expunge.cli.verb import Verb, config_of, parsed, run_options, verbose_option
from expunge.core.errors import Fault, Faults, UserError, unknown
from expunge.sweeps.executor import EXECUTORS, executor_of
from expunge.sweeps.job import Job, check_jobs
from expunge.sweeps.run import JobsCancelled, Outcome, run_jobs

VERBS = ("train", "unlearn", "eval")
"""The verbs that fill a run folder."""

HELP = """\
FILE holds one command line a line, such as `expunge unlearn trainer=NPO task_name=npo ...`; blank lines and
lines that begin with # are left out. All are checked before the first one runs, so no line can need what
another one makes. A run that is finished is skipped, an interrupted one continues, and the output of each
goes to NAME.job.log beside its run folder.

Executors: local (one after the other), joblib (--workers at a time on this machine), submitit (a SLURM job
array), ray (a Ray cluster).

Examples:
  expunge jobs jobs.txt --dry-run
  expunge jobs jobs.txt --executor joblib --workers 2 --env OMP_NUM_THREADS=1
  expunge jobs jobs.txt --executor submitit --workers 8 --gpus 1 --set timeout_min=240
  expunge jobs jobs.txt --executor ray --gpus 1 --set address=auto
"""


def run(args: argparse.Namespace) -> None:
    """Run the jobs, and print what became of them."""
    setup_logging(args.verbose)
    jobs = read_jobs(Path(args.file), {verb.name: verb for verb in args.verbs}, _pairs("--env", args.env))
    if args.dry_run:
        rows = ((_plan(job), str(job.folder), shlex.join(job.words)) for job in jobs)
        print_table(("would", "folder", "command"), rows)
        return
    settings: dict[str, Any] = {name: _value(text) for name, text in _pairs("--set", args.set).items()}
    chosen = {"workers": args.workers, "gpus": args.gpus}
    executor = executor_of(args.executor, settings | {k: v for k, v in chosen.items() if v is not None})
    try:
        outcomes = run_jobs(jobs, executor, on_progress=lambda progress: print(progress, flush=True))
    except JobsCancelled as stopped:
        _print_outcomes(stopped.outcomes)
        raise
    _print_outcomes(outcomes)
    bad = [outcome for outcome in outcomes if outcome.state not in ("done", "skipped")]
    if bad:
        raise UserError.of(_fault(outcome) for outcome in bad)


def read_jobs(file: Path, verbs: Mapping[str, Verb], environment: Mapping[str, str]) -> list[Job]:
    """The jobs of a file, each checked as its command would be.

    Args:
        file: one command line a line.
        verbs: those of `expunge`, by name.
        environment: variables of every job.

    Raises:
        UserError: all faults of all lines, each with its line's number.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the jobs of {file}: {error}", "give a text file") from error
    faults, jobs = Faults(), list[Job]()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            jobs.append(_job(line, verbs, environment))
        except UserError as error:
            for fault in error.faults:
                faults.fault(f"{file}, line {number}: {fault.message}", fault.hint)
    if not faults.faults and not jobs:
        faults.fault(f"{file} holds no command line", "write one a line, such as `expunge unlearn …`")
    with faults.noted():
        check_jobs(jobs)
    faults.raise_found()
    return jobs


class _LineParser(argparse.ArgumentParser):
    """Reports what is wrong with a line as a fault, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see `{self.prog} --help`")


def _job(line: str, verbs: Mapping[str, Verb], environment: Mapping[str, str]) -> Job:
    from expunge.core.run_dir import RunDir

    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"{line!r} is no command line: {error}", "close the quotation") from error
    if words[0] != "expunge" or len(words) < 2:
        raise UserError(f"a job begins with `expunge`, not with {words[0]!r}", f"one of {', '.join(VERBS)}")
    if words[1] not in VERBS:
        raise UserError.of([unknown("verb of a job", words[1], VERBS)])
    verb = verbs[words[1]]
    parser = _LineParser(prog=f"expunge {verb.name}", add_help=False, allow_abbrev=False)
    assert verb.config_name is not None
    run_options(parser, verb.config_name)
    cfg = config_of(parsed(parser, words[2:]))
    if cfg.get("overwrite"):
        raise UserError(
            "overwrite=true in a job: one that is interrupted would begin again instead of continuing",
            "leave it out, and choose another task_name or remove the old folder",
        )
    folder = Path(cfg.get("paths.output_dir"))
    # Refuses a folder that belongs to another configuration.
    RunDir(folder, cfg)
    return Job(tuple(words), folder, cfg, dict(environment))


def _plan(job: Job) -> str:
    if job.is_finished:
        return "skip"
    return "run" if job.status is None else "continue"


def _pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise UserError(f"{option} {item}: no KEY=VALUE", f"write {option} NAME=VALUE")
        found[name] = value
    return found


def _value(text: str) -> Any:
    """A setting as a number, true or false where it is one in JSON, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    rows = ((outcome.state, str(outcome.job.folder), str(outcome.job.log)) for outcome in outcomes)
    print_table(("state", "folder", "log"), rows)


def _fault(outcome: Outcome) -> Fault:
    ended = "" if outcome.exit_code is None else f" with exit code {outcome.exit_code}"
    lines = "".join(f"\n    {line}" for line in outcome.lines)
    hint = f"the whole output is in {outcome.job.log}; the same `expunge jobs` runs only what is not finished"
    return Fault(f"{outcome.job.folder}: {outcome.state}{ended}{lines}", hint)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="one command line a line")
    about = "what runs them (default: %(default)s)"
    parser.add_argument("--executor", default="local", metavar="|".join(EXECUTORS), help=about)
    about = "how many run at a time; joblib and submitit"
    parser.add_argument("--workers", type=int, default=None, metavar="N", help=about)
    about = "GPUs a job; joblib, submitit and ray"
    parser.add_argument("--gpus", type=int, default=None, metavar="K", help=about)
    about = "a variable of every job's environment; may repeat"
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "a setting of the executor, such as timeout_min=240 for submitit; may repeat"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "print what would run or be skipped, and stop"
    parser.add_argument("--dry-run", action="store_true", help=about)
    verbose_option(parser)


JOBS = Verb("jobs", "run the command lines of a file, here or on a cluster", HELP, run, _options)
