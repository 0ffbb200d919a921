#!/usr/bin/env bash
# Table 1, CIFAR-10: attention transfer, full-activation transfer, distillation and AT+KD for four pairs; median of
# five seeds. `make table1`; recipes/common.sh explains the settings. PAIRS='wrn_16_1:wrn_16_2' trains only
# these students and teachers.
. "$(dirname "$0")/common.sh"
PAIRS=${PAIRS:-nin_thin:nin_wide wrn_16_1:wrn_16_2 wrn_16_1:wrn_40_1 wrn_16_2:wrn_40_2}
networks='nin_wide wrn_16_2 wrn_40_1 wrn_40_2 nin_thin wrn_16_1'
for pair in $PAIRS; do
    for network in "${pair%%:*}" "${pair#*:}"; do
        case "$pair $networks " in
            *:*" $network "*) ;;
            *) refuse "PAIRS: $pair is not student:teacher, such as wrn_16_1:wrn_16_2" ;;
        esac
    done
done
case ${TEACHER:+$PAIRS} in
    *' '*) refuse "TEACHER=$TEACHER teaches one pair: give PAIRS=student:teacher" ;;
esac

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
        for network in $networks; do
            case " $PAIRS " in  # WRN-16-2 is the student of one pair and the teacher of another
                *" $network:"*) alone "$network" ;;
                *":$network "*) teacher "$network" ;;
            esac
        done
        for pair in $PAIRS; do
            pair "${pair%%:*}" "${pair#*:}"
        done
    done
}

table 1
