#!/usr/bin/env bash
# A teacher and four students on the built-in shapes: their table of errors, their curves, and where they look.
# `make demo`. Two runs at the same time, with JOBS=1 one. SEEDS='1 2 3' trains them once for each seed.
# ARGS='--dtype float' goes to every run. A second call does not repeat finished epochs.
SEEDS=${SEEDS:-1} JOBS=${JOBS:-2}
. "$(dirname "$0")/common.sh"

# shapes NAME OPTIONS...
shapes() {
    local name=$1
    shift
    run cifar.py "$name" --dataset shapes --batch_size 32 --epochs 8 --lr_schedule linear --warmup 1 --fast "$@"
}

# student NAME OPTIONS...
student() {
    shapes "$@" --depth 10 --teacher_id "$LOGS/$seed/teacher"
}

rows() {
    local seed
    for seed in $SEEDS; do
        shapes teacher --depth 16
        shapes alone --depth 10
        student at_kd --beta 1e+3 --alpha 0.9 --beta_decay linear
        student at --beta 1e+3
        student kd --alpha 0.9 --temperature 1  # with 4, KD needs more steps than these
    done
}

commands=$(set -e; rows)
train "$commands"
[ -z "${PRINT:-}" ] || exit 0
"$PYTHON" -m tools.report "$LOGS" --plot "$LOGS/curves.png" --title 'Ten shapes: a teacher and its students'
runs=$LOGS/${SEEDS%% *}
"$PYTHON" -m tools.visualize --disputed 4 --weights "$runs/teacher" "$runs/alone" "$runs/at_kd" \
    --names teacher 'student alone' 'student with AT+KD' --maps sum2 --groups '[1]' --style overlay \
    --title 'Where they look: the first test images on which they disagree' --save "$LOGS/attention.png"

# The result in one line.
"$PYTHON" - "$LOGS" <<'END'
import sys
from pathlib import Path
from statistics import median

from tools.report import logs

with_at, alone, teacher = ([run.error for run in logs.read(sorted(Path(sys.argv[1]).glob(f'*/{name}')))]
                           for name in ('at_kd', 'alone', 'teacher'))
print(f'AT+KD: {median(with_at):.1f} % test error, the same student alone {median(alone):.1f} %, '
      f'its teacher {median(teacher):.1f} %' + f' (medians of {len(alone)} seeds)' * (len(alone) > 1))
END
echo "Pictures: $LOGS/curves.png (the errors), $LOGS/attention.png (where they look)."
echo "Next, on CIFAR-10, in hours on a CPU: make table1 SEEDS=1 EPOCHS=30 SCHEDULE=linear PAIRS=wrn_16_1:wrn_16_2"
