#!/usr/bin/env bash
# A teacher and three students on the built-in shapes, their table of errors and their curves: `make demo`.
# SEEDS='1 2 3' trains them once for each seed. A second call repeats no epoch that is done.
set -eu
PYTHON=${PYTHON:-python}
LOGS=${LOGS:-logs/demo}

train() {
    "$PYTHON" cifar.py --dataset shapes --batch_size 32 --epochs 8 --epoch_step '[6,8]' --resume auto "$@"
}

for seed in ${SEEDS:-1}; do
    teacher=$LOGS/$seed/teacher
    train --seed "$seed" --save "$teacher" --depth 16
    train --seed "$seed" --save "$LOGS/$seed/alone" --depth 10
    train --seed "$seed" --save "$LOGS/$seed/kd" --depth 10 --teacher_id "$teacher" --alpha 0.9
    train --seed "$seed" --save "$LOGS/$seed/at" --depth 10 --teacher_id "$teacher" --beta 1e+3
done
"$PYTHON" -m tools.report "$LOGS" --plot "$LOGS/curves.png" --title 'Ten shapes: a teacher and its students'
echo "The curves are in $LOGS/curves.png"
