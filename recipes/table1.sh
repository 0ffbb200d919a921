#!/usr/bin/env bash
# Table 1, CIFAR-10: attention transfer, full-activation transfer, distillation, and both, for four pairs; median
# of five seeds. `make table1`; recipes/common.sh tells the settings.
. "$(dirname "$0")/common.sh"

# The paper decays beta in F-ActT and in AT+KD, and does not say how.
pair() {
    student "$1" "$2" at --beta 1e+3
    student "$1" "$2" factt --hint_beta 1e+3 --beta_decay linear
    student "$1" "$2" kd --alpha 0.9
    student "$1" "$2" at_kd --beta 1e+3 --alpha 0.9 --beta_decay linear
}

rows() {
    local seed network
    for seed in $SEEDS; do
        for network in nin_wide wrn_16_2 wrn_40_1 wrn_40_2 nin_thin wrn_16_1; do
            alone "$network"  # WRN-16-2 is the student of one pair and the teacher of another
        done
    done
    stage
    for seed in $SEEDS; do
        pair nin_thin nin_wide
        pair wrn_16_1 wrn_16_2
        pair wrn_16_1 wrn_40_1
        pair wrn_16_2 wrn_40_2
    done
}

table 1
