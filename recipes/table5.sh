#!/usr/bin/env bash
# Table 5, ImageNet: ResNet-34 to ResNet-18 by attention transfer and by distillation; one seed. `make table5
# IMAGENET=folder`; recipes/common.sh explains the other settings. TEACHER=file is a trained ResNet-34, whose
# errors are printed last.
SEEDS=${SEEDS:-1}
. "$(dirname "$0")/common.sh"
TEACHER=${TEACHER:-torchvision:resnet34}
[ -n "${IMAGENET:-}" ] || refuse "there are no images: give the folder of ImageNet, which has train/<synset>/ and \
val/<synset>/, with IMAGENET=folder"

imagenet() {
    local name=$1
    shift
    run imagenet.py "$name" --dataset "${DATASET:-imagenet}" --imagenetpath "$IMAGENET" "$@"
}

rows() {
    local seed from
    from=$(scaled 100 60)  # the paper switches attention transfer on at epoch 60 of 100
    if [ "$from" -gt "${EPOCHS:-100}" ]; then
        from=$EPOCHS
    fi
    for seed in $SEEDS; do
        imagenet r34 --evaluate --student_params "$TEACHER"
        imagenet r18 $(schedule 100 30 60 90)
        imagenet r18_at $(schedule 100 30 60 90) --teacher_params "$TEACHER" --beta 1e+3 --at_from_epoch "$from"
        imagenet r18_kd $(schedule 100 30 60 90) --teacher_params "$TEACHER" --alpha 0.9
    done
}

table 5
if [ -z "${PRINT:-}" ]; then
    tail -n 1 "$LOGS"/"${SEEDS%% *}"/r34.out  # an evaluation has no log
fi
