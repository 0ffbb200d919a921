#!/usr/bin/env bash
# Table 2, CIFAR-10, WRN-16-2 to WRN-16-1: attention mapping functions, and attention transfer at one group only;
# median of five seeds. `make table2`; recipes/common.sh explains the settings.
#
# Runs have the names of Table 1: with LOGS=logs/table1, finished ones are not trained again.
. "$(dirname "$0")/common.sh"

rows() {
    local seed group
    for seed in $SEEDS; do
        teacher wrn_16_2
        alone wrn_16_1
        student wrn_16_1 wrn_16_2 at --beta 1e+3
        student wrn_16_1 wrn_16_2 at_sum1 --beta 1e+3 --map_p 1
        student wrn_16_1 wrn_16_2 at_sum4 --beta 1e+3 --map_p 4
        student wrn_16_1 wrn_16_2 at_max1 --beta 1e+3 --map max --map_p 1
        for group in 0 1 2; do
            student wrn_16_1 wrn_16_2 "at_group$group" --beta 1e+3 --at_groups "[$group]"
        done
    done
}

table 2
