"""`python -m tools.benchmark` starts here."""
import sys

from tools import benchmark
from training import exits

if __name__ == '__main__':
    sys.argv[0] = 'tools.benchmark'  # which messages begin with
    exits.script(benchmark.main)
