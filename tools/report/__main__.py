"""`python -m tools.report` starts here."""
import sys

import process
from tools import report

if __name__ == '__main__':
    sys.argv[0] = 'tools.report'  # which messages begin with
    process.script(report.main)
