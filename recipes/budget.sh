#!/usr/bin/env bash
# What a teacher is worth when training is short, CIFAR-10: WRN-16-1 alone, and from one WRN-16-2 by attention
# transfer, distillation, and both, for each number of epochs in EPOCHS_LIST. `make budget`; recipes/common.sh
# tells the other settings. EPOCHS is that of the teacher, which is trained with the first of SEEDS.
SEEDS=${SEEDS:-1 2 3}
EPOCHS=${EPOCHS:-30}
EPOCHS_LIST=${EPOCHS_LIST:-5 10 20 30 60}
SCHEDULE=${SCHEDULE:-linear}
[ "$SCHEDULE" = step ] || WARMUP=${WARMUP:-1}
. "$(dirname "$0")/common.sh"
for epochs in $EPOCHS_LIST; do
    case $epochs in
        0* | *[!0-9]*) refuse "EPOCHS_LIST=$EPOCHS_LIST: give whole numbers of epochs from 1, such as '5 10 20'" ;;
    esac
done
teacher=$LOGS/${SEEDS%% *}/wrn_16_2

# taught METHOD OPTIONS...
taught() {
    local method=$1
    shift
    cifar "wrn_16_1_${method}_$EPOCHS" $wrn_16_1 --teacher_id "$teacher" "$@"
}

rows() {
    local seed=${SEEDS%% *} EPOCHS=$EPOCHS
    alone wrn_16_2
    stage
    for EPOCHS in $EPOCHS_LIST; do
        for seed in $SEEDS; do
            cifar "wrn_16_1_alone_$EPOCHS" $wrn_16_1
            taught at --beta 1e+3
            taught kd --alpha 0.9
            taught at_kd --beta 1e+3 --alpha 0.9 --beta_decay linear
        done
    done
}

commands=$(set -e; rows)
train "$commands"
if [ -z "${PRINT:-}" ]; then
    "$PYTHON" -m tools.report --budget "$LOGS" --plot "$LOGS/budget.png"
fi
