"""`python -m benchmarks`: run all benchmarks and write `docs/benchmarks.md` and `docs/benchmarks.json`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import hot_path, methods, one_pass, reference, rows, terms
from benchmarks.comparison import write

NAMES = ("one-pass", "reference", "terms", "hot-path", "rows-evaluation", "rows-training", "methods")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the benefit of each design decision, as a ratio against a named baseline.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=NAMES,
        help="run only this benchmark; may be repeated; results are written only if --out is given, and the "
        "sections of the other benchmarks stay there",
    )
    parser.add_argument(
        "--rows", type=int, default=100, help="rows per view in one-pass, 0 = all (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="number of threads of torch (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: only checks that it runs, the ratios mean nothing"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder for benchmarks.md and benchmarks.json (default: docs)",
    )
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    runs = {
        "one-pass": lambda: one_pass.compare(args.quick, args.rows or None),
        "reference": lambda: reference.compare(args.quick),
        "terms": lambda: terms.compare(args.quick),
        "hot-path": lambda: hot_path.compare(args.quick),
        "rows-evaluation": lambda: rows.compare_evaluation(args.quick),
        "rows-training": lambda: rows.compare_training(args.quick),
        "methods": lambda: methods.compare(args.quick),
    }
    out = args.out or (None if args.only or args.quick else Path(__file__).resolve().parents[1] / "docs")
    found = {}
    for name in args.only or NAMES:
        print(f"==> {name}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        found[name] = runs[name]()
        print(found[name].markdown())
        print(f"    {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if out is not None:
            write(
                {name: found[name]},
                out,
                f"python -m benchmarks --only {name} --threads {args.threads}",
                NAMES,
            )
    missed = [
        ratio.name for comparison in found.values() for ratio in comparison.ratios if ratio.met is False
    ]
    if missed and not args.quick:
        print(f"targets missed: {'; '.join(missed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
