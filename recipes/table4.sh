#!/usr/bin/env bash
# Table 4, fine-tuning on CUB and Scenes: a ResNet-34, which then teaches a ResNet-18. `make table4 CUB=folder
# SCENES=folder`, one of them, or DATASET=cub, scenes or folder with DATAROOT=folder; recipes/common.sh explains the
# other settings. R18=file and R34=file are the initial weights.
. "$(dirname "$0")/common.sh"
R18=${R18:-torchvision:resnet18}
R34=${R34:-torchvision:resnet34}
case ${DATASET:-} in
    '') sets="${CUB:+cub} ${SCENES:+scenes}" ;;
    *) sets=$DATASET ;;
esac
[ -n "${sets// /}" ] || refuse "there are no images: give the folder of CUB-200-2011 with CUB=folder, of MIT Indoor \
67 with SCENES=folder, or one of your own with DATASET=folder DATAROOT=folder"

root() {
    case $1 in
        cub) echo "${CUB:-${DATAROOT:-}}" ;;
        scenes) echo "${SCENES:-${DATAROOT:-}}" ;;
        *) echo "${DATAROOT:-}" ;;
    esac
}

# tuned SET NAME DEPTH WEIGHTS OPTIONS...
tuned() {
    local set=$1 name=$2 depth=$3 weights=$4
    shift 4
    run imagenet.py "${set}_$name" --dataset "$set" --dataroot "$(root "$set")" --depth "$depth" \
        --finetune "$weights" $(schedule 60 40) "$@"
}

rows() {
    local seed set
    for seed in $SEEDS; do
        for set in $sets; do
            tuned "$set" r34 34 "$R34"
            tuned "$set" r18 18 "$R18"
            tuned "$set" r18_kd 18 "$R18" --teacher_params "$LOGS/$seed/${set}_r34" --alpha 0.9
            tuned "$set" r18_at 18 "$R18" --teacher_params "$LOGS/$seed/${set}_r34" --beta 1e+3
        done
    done
}

table 4
