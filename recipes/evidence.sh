#!/usr/bin/env bash
# The long runs that docs/results.md has or still lacks, the most important ones first, with a teacher for each seed:
# `make evidence`. It takes days on two cores. It may be stopped or killed at any time, and resumes when it is started
# again. ARGS and JOBS work as in all recipes.
set -eu
cd "$(dirname "$0")"
export EPOCHS=30 SCHEDULE=linear WARMUP=1 LR=0.1 ARGS="--fast ${ARGS:-}"
row=wrn_16_1:wrn_16_2

SEEDS=11 bash tune.sh
PAIRS=$row bash table1.sh
SEEDS='1 2 3' LOGS=logs/table1 bash budget.sh
SEEDS='1 2 3' LOGS=logs/table1 bash table2.sh
EPOCHS=200 SCHEDULE=step WARMUP=0 SEEDS=1 PAIRS=$row LOGS=logs/paper bash table1.sh
SEEDS='1 2 3' PAIRS='wrn_16_1:wrn_40_1 wrn_16_2:wrn_40_2 nin_thin:nin_wide' bash table1.sh
