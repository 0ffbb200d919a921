"""`python -m tools.benchmark` starts here."""
import sys

import process
from tools import benchmark

if __name__ == '__main__':
    sys.argv[0] = 'tools.benchmark'  # which messages begin with
    process.script(benchmark.main)
