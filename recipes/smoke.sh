#!/usr/bin/env bash
# Every row of every table and every loss of other papers for two epochs of a few steps, on the built-in shapes:
# `make smoke`. The errors mean nothing. Without LOGS=folder it starts from the beginning each time.
[ -n "${LOGS:-}${PRINT:-}" ] || rm -rf "$(dirname "$0")/../logs/smoke"
. "$(dirname "$0")/common.sh"
export PYTHON LOGS SEEDS=1 EPOCHS=2
images=$LOGS/images
seed=1
options=${ARGS:-}
small="--width 0.125 --batch_size 5 --lr 1e-3 --nthread 0 $options"  # of imagenet.py

# One image of each class for training, and one for testing.
"$PYTHON" - "$images" <<'END'
import sys
from pathlib import Path

from PIL import Image

from inputs import shapes

count = {}
for image, label in zip(*shapes.make(20, seed=0)):
    n = count[label] = count.get(label, 0) + 1
    file = Path(sys.argv[1], 'val' if n == 2 else 'train', shapes.CLASSES[label], f'{n}.png')
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
END

# commands N: the commands of Table N, in a folder of its own.
commands() {
    PRINT=1 LOGS=$LOGS/table$1 bash "recipes/table$1.sh"
}

# The losses of other papers, several in a run, with a teacher of Table 1.
rivals() {
    rival groups --fitnet_weight 1 --vid_weight 1 --nst_weight 1 --sp_weight 1
    rival embeddings --rkd_distance_weight 1 --rkd_angle_weight 1 --pkt_weight 1 --cc_weight 1
    rival logits --dkd_weight 1 --dist_weight 1 --alpha 0.9 --kd_logits standardized --beta 1 --at_norm paper
}

rival() {
    local name=$1
    shift
    run cifar.py "$name" --dataset shapes --max_images 16 --batch_size 8 --depth 10 $(schedule 200 60 120 160) \
        --teacher_id "$LOGS/table1/1/wrn_16_2" "$@"
}

rows() {
    for table in 1 2 3; do
        ARGS="--max_images 16 --batch_size 8 $options" DATASET=shapes commands "$table"
    done
    rivals
    export DATASET=folder ARGS=$small
    run imagenet.py teacher --dataset folder --dataroot "$images" --depth 34 $(schedule 100)
    TEACHER=$LOGS/1/teacher IMAGENET=$images commands 5
    R18=$LOGS/table5/1/r18 R34=$LOGS/1/teacher DATAROOT=$images commands 4
}

lines=$(set -e; rows)
train "$lines"
