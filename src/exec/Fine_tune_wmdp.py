"""The SOUL family's command line: `python src/exec/Fine_tune_wmdp.py --help`."""

import sys

from expunge.cli.soul import script

if __name__ == "__main__":
    sys.exit(script("Fine_tune_wmdp"))
