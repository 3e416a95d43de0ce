"""Finetune or unlearn with the field's command line: `python src/train.py --config-name=unlearn.yaml ...`."""

import sys

from expunge.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train.py", "train.yaml"))
