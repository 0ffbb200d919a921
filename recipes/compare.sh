#!/usr/bin/env bash
# Losses compared with equal effort on CIFAR. Each loss tries its usual weight, a third of it and three times it on
# VAL_IMAGES held-out training images (CHOICE_SEEDS). Then it is trained with the best weight on all images (SEEDS).
# Runs with the same seed have the same initial student and the same batches. PAIR=wrn_16_1:wrn_16_2 is the student and
# the teacher, LOSSES='at kd' a part of the losses. `make compare`; recipes/common.sh explains the other settings.
SEEDS=${SEEDS:-1 2 3 4 5}
CHOICE_SEEDS=${CHOICE_SEEDS:-11}
VAL_IMAGES=${VAL_IMAGES:-5000}
EPOCHS=${EPOCHS:-30}
SCHEDULE=${SCHEDULE:-linear}
[ "$SCHEDULE" = step ] || WARMUP=${WARMUP:-1}
PAIR=${PAIR:-wrn_16_1:wrn_16_2}
. "$(dirname "$0")/common.sh"
student=${PAIR%%:*} teacher=${PAIR#*:}
[ "$student" != "$teacher" ] || refuse "PAIR=$PAIR: give student:teacher, two different networks"
for network in "$student" "$teacher"; do
    case $network in
        wrn_* | resnet_* | nin_*) [ -n "${!network:-}" ] && continue ;;
    esac
    refuse "PAIR=$PAIR: give student:teacher, such as wrn_16_1:wrn_16_2"
done

# A loss, its options, and the weights to try. Those of KD have odds of 3, 9 and 27 to the cross-entropy. FitNets and
# SP compare one group, as usual.
table='
at         --beta                            333 1000 3000
kd         --alpha                           0.75 0.9 0.964
kd_std     --kd_logits standardized --alpha  0.75 0.9 0.964
f_actt     --beta_decay linear --hint_beta   333 1000 3000
fitnet     --at_groups [1] --fitnet_weight   0.33 1 3
vid        --vid_weight                      0.33 1 3
nst        --nst_weight                      17 50 150
sp         --at_groups [2] --sp_weight       1000 3000 9000
rkd_d      --rkd_distance_weight             8 25 75
rkd_a      --rkd_angle_weight                17 50 150
pkt        --pkt_weight                      10000 30000 90000
cc         --cc_weight                       33 100 300
dkd        --dkd_weight                      0.33 1 3
dist       --dist_weight                     0.33 1 3
'
LOSSES=${LOSSES:-$(awk '{print $1}' <<< "$table")}

# candidates LOSS: a line of options for each weight.
candidates() {
    awk -v loss="$1" '$1 == loss {
        for (i = NF - 2; i <= NF; i++) { for (j = 2; j < NF - 2; j++) printf "%s ", $j; print $i }
    }' <<< "$table"
}

for loss in $LOSSES; do
    [ -n "$(candidates "$loss")" ] || refuse "LOSSES=$LOSSES: there is no loss $loss"
done

# taught OPTIONS...: the student with this loss. The options name the run.
taught() {
    local name="$*"
    name=${name//[^a-z0-9._ ]/}
    student "$student" "$teacher" "${name// /_}" "$@"
}

# choice: the runs on held-out images.
choice() {
    local seed loss options LOGS=$LOGS/choice ARGS="--val_images $VAL_IMAGES ${ARGS:-}"
    for seed in $CHOICE_SEEDS; do
        teacher "$teacher"
        for loss in $LOSSES; do
            while read -r options; do
                taught $options
            done < <(candidates "$loss")
        done
    done
}

# final OPTIONS: the runs with the chosen weights, one line of options for each loss.
final() {
    local seed options LOGS=$LOGS/final
    for seed in $SEEDS; do
        teacher "$teacher"
        alone "$student"
        while read -r options; do
            taught $options
        done <<< "$1"
    done
}

train "$(choice)"
if [ -n "${PRINT:-}" ]; then
    exit  # the other commands depend on these results
fi
chosen=$("$PYTHON" -m tools.report --choose "$LOGS/choice")
train "$(final "$chosen")"
"$PYTHON" -m tools.report --compare "$LOGS" --plot "$LOGS/compare.png"
