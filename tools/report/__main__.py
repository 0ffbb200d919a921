"""`python -m tools.report` starts here."""
import sys

from tools import report
from training import exits

if __name__ == '__main__':
    sys.argv[0] = 'tools.report'  # which messages begin with
    exits.script(report.main)
