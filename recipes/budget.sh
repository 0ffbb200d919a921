#!/usr/bin/env bash
# What a teacher is worth when training is short, on CIFAR-10: WRN-16-1 alone, and from WRN-16-2 with attention
# transfer, distillation and both, for each number of epochs in EPOCHS_LIST. The teacher is trained for EPOCHS.
# `make budget`; recipes/common.sh explains the other settings.
#
# Runs of EPOCHS have the names of Table 1: with LOGS=logs/table1, finished ones are not trained again.
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

# students SUFFIX
students() {
    cifar "wrn_16_1$1" $wrn_16_1
    student wrn_16_1 wrn_16_2 "at$1" --beta 1e+3
    student wrn_16_1 wrn_16_2 "kd$1" --alpha 0.9
    student wrn_16_1 wrn_16_2 "at_kd$1" --beta 1e+3 --alpha 0.9 --beta_decay linear
}

rows() {
    local seed epochs of_teacher=$EPOCHS
    for seed in $SEEDS; do
        teacher wrn_16_2
        for epochs in $EPOCHS_LIST; do
            if [ "$epochs" = "$of_teacher" ]; then
                students ''
            else
                EPOCHS=$epochs students "_$epochs"
            fi
        done
    done
}

commands=$(set -e; rows)
train "$commands"
if [ -z "${PRINT:-}" ]; then
    "$PYTHON" -m tools.report --budget "$LOGS" --plot "$LOGS/budget.png"
fi
