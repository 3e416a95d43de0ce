"""`expunge jobs`: run the command lines of a file, one by one, several at a time, or on a cluster."""

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
from expunge.sweeps.executor import EXECUTORS, bind_executor, executor_of
from expunge.sweeps.job import Job, check_jobs
from expunge.sweeps.run import JobsCancelled, Outcome, run_jobs

VERBS = ("train", "unlearn", "eval")
"""The verbs that fill a run folder."""

HELP = """\
Each line of FILE is a command line, such as `expunge unlearn trainer=NPO task_name=npo ...`. Blank lines and
lines that begin with # are ignored. All lines are checked before the first job runs, so a line cannot need
the result of another line. A finished run is skipped, an interrupted run continues. The output of a job is
written to NAME.job.log beside its run folder.

Executors: local (one job after the other), joblib (N jobs at a time on this machine), submitit (a SLURM job
array), ray (a Ray cluster), or module:Class of your own.

Examples:
  expunge jobs jobs.txt --dry-run
  expunge jobs jobs.txt --executor joblib --workers 2 --env OMP_NUM_THREADS=1
  expunge jobs jobs.txt --executor submitit --workers 8 --gpus 1 --set timeout_min=240
  expunge jobs jobs.txt --executor ray --gpus 1 --set address=auto
"""


def run(args: argparse.Namespace) -> None:
    """Run the jobs, and print how each ended."""
    setup_logging(args.verbose)
    settings: dict[str, Any] = {name: _value(text) for name, text in _pairs("--set", args.set).items()}
    chosen = {"workers": args.workers, "gpus": args.gpus}
    settings |= {name: count for name, count in chosen.items() if count is not None}
    bind_executor(args.executor, settings)
    jobs = read_jobs(Path(args.file), {verb.name: verb for verb in args.verbs}, _pairs("--env", args.env))
    if args.dry_run:
        rows = ((_plan(job), str(job.folder), shlex.join(job.words)) for job in jobs)
        print_table(("would", "folder", "command"), rows)
        return
    executor = executor_of(args.executor, settings)
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
        file: a text file with one command line per line.
        verbs: the verbs of `expunge`, by name.
        environment: variables of every job.

    Raises:
        UserError: all faults of all lines, each with the number of its line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        hint = "give a text file with one command line per line"
        raise UserError(f"cannot read the jobs of {file}: {said}", hint) from error
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
        hint = "write one per line, such as `expunge unlearn trainer=NPO task_name=npo ...`"
        faults.fault(f"{file} contains no command line", hint)
    with faults.noted():
        check_jobs(jobs)
    faults.raise_found()
    return jobs


class _LineParser(argparse.ArgumentParser):
    """Reports a wrong line as a fault instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see `{self.prog} --help`")


def _job(line: str, verbs: Mapping[str, Verb], environment: Mapping[str, str]) -> Job:
    from expunge.core.run_dir import RunDir

    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"{line!r} is not a command line: {error}", "close the quotation") from error
    if words[0] != "expunge" or len(words) < 2:
        hint = f"begin the line with {', '.join(f'`expunge {verb}`' for verb in VERBS)}"
        raise UserError(f"{line.strip()!r} is not a command of `expunge`", hint)
    if words[1] not in VERBS:
        raise UserError.of([unknown("verb of a job", words[1], VERBS)])
    verb = verbs[words[1]]
    parser = _LineParser(prog=f"expunge {verb.name}", add_help=False, allow_abbrev=False)
    assert verb.config_name is not None
    run_options(parser, verb.config_name)
    cfg = config_of(parsed(parser, words[2:]))
    if cfg.get("overwrite"):
        raise UserError(
            "overwrite=true in a job: after an interruption the job would begin again instead of continuing",
            "leave it out; choose another task_name or remove the old folder",
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
            raise UserError(f"{option} {item}: not KEY=VALUE", f"write {option} KEY=VALUE")
        found[name] = value
    return found


def _value(text: str) -> Any:
    """The value of a setting: read as JSON if possible (a number, true, false), else the text."""
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
    hint = f"see {outcome.job.log} for all output; the same `expunge jobs` runs only unfinished jobs"
    return Fault(f"{outcome.job.folder}: {outcome.state}{ended}{lines}", hint)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a text file with one command line per line")
    about = "what runs the jobs (default: %(default)s)"
    parser.add_argument("--executor", default="local", metavar="|".join(EXECUTORS), help=about)
    about = "number of jobs that run at a time; joblib and submitit"
    parser.add_argument("--workers", type=int, default=None, metavar="N", help=about)
    about = "number of GPUs of each job; joblib, submitit and ray"
    parser.add_argument("--gpus", type=int, default=None, metavar="K", help=about)
    about = "an environment variable of every job; may be given several times"
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "a setting of the executor, such as timeout_min=240; may be given several times"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "print what would run, continue or be skipped, and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=about)
    verbose_option(parser)


JOBS = Verb("jobs", "run the command lines of a file, here or on a cluster", HELP, run, _options)
