"""The SOUL family's command line: `python exec/unlearn_model.py --help`."""

import sys

from expunge.soul.main import script

if __name__ == "__main__":
    sys.exit(script("unlearn_model"))
