"""Evaluate with the field's command line: `python src/eval.py --config-name=eval.yaml ...`."""

import sys

from expunge.cli.main import script

if __name__ == "__main__":
    sys.exit(script("eval.py", "eval.yaml"))
