"""The verbs of `expunge`, in the order of its help. A verb is a file in this folder and listed in `VERBS`."""

from __future__ import annotations

from expunge.cli.verb import Verb
from expunge.cli.verbs.alternates import ALTERNATES
from expunge.cli.verbs.demo import DEMO
from expunge.cli.verbs.jobs import JOBS
from expunge.cli.verbs.listing import LS, SHOW
from expunge.cli.verbs.plan import PLAN
from expunge.cli.verbs.run import EVAL, TRAIN, UNLEARN
from expunge.cli.verbs.score import SCORE
from expunge.cli.verbs.validate import VALIDATE

VERBS: tuple[Verb, ...] = (TRAIN, UNLEARN, EVAL, VALIDATE, PLAN, LS, SHOW, ALTERNATES, SCORE, JOBS, DEMO)
