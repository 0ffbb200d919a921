#!/usr/bin/env bash
# Every run of 30 epochs and more that docs/results.md will show, in the order of their worth: `make evidence`. It may be stopped or killed at any
# moment; started again, it resumes. On two cores it takes days. ARGS='--dataroot data' and JOBS as for all recipes.
set -eu
cd "$(dirname "$0")"
export EPOCHS=30 SCHEDULE=linear WARMUP=1 LR=0.1 ARGS="--fast ${ARGS:-}"
row=wrn_16_1:wrn_16_2

SEEDS=11 bash tune.sh
for seed in 1 2 3 4 5; do
    SEEDS=$seed PAIRS=$row bash table1.sh  # a seed after the other: what is complete can be published
done
SEEDS='1 2 3' bash budget.sh
SEEDS='1 2 3' LOGS=logs/table1 bash table2.sh
EPOCHS=200 SCHEDULE=step WARMUP=0 SEEDS=1 PAIRS=$row LOGS=logs/paper bash table1.sh
SEEDS='1 2 3' PAIRS='wrn_16_1:wrn_40_1 wrn_16_2:wrn_40_2 nin_thin:nin_wide' bash table1.sh
