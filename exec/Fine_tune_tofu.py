"""The SOUL family's command line: `python exec/Fine_tune_tofu.py --help`."""

import sys

from expunge.soul.main import script

if __name__ == "__main__":
    sys.exit(script("Fine_tune_tofu"))
