# What the recipes have in common. A recipe defines `rows`, which prints commands for tools/jobs.py, and ends with
# `table N`. Settings come from the environment:
#   JOBS=4                     number of runs at the same time
#   GPUS=0,1                   GPUs that the runs use in turn
#   EPOCHS=12                  length of the runs; the steps of the learning rate move in proportion
#   SCHEDULE=linear            or cosine, instead of steps of the learning rate
#   WARMUP=1 LR=0.1            warm-up in epochs; learning rate at its highest
#   SEEDS='1 2 3'  DATASET=CIFAR100  LOGS=folder  PYTHON=python3
#   TEACHER=folder             CIFAR: the students of all seeds learn from this run; no teacher is trained
#   ARGS='--dataroot data'     options for every run
#   PRINT=1                    print the commands and train nothing
# A recipe that was stopped resumes when it is started again.
set -euf  # f: [60,120,160] is not a pattern of file names
cd "$(dirname "$0")/.."

refuse() {
    echo "$(basename "$0"): error: $1" >&2
    exit 2
}

PYTHON=${PYTHON:-python}
LOGS=${LOGS:-logs/$(basename "$0" .sh)}
case $LOGS in
    '~' | '~/'*) LOGS=$HOME${LOGS#'~'} ;;  # as the options of the scripts do
esac
SEEDS=${SEEDS:-1 2 3 4 5}
case ${EPOCHS:-1} in
    0* | *[!0-9]*) refuse "EPOCHS=$EPOCHS: give the number of epochs, a whole number from 1" ;;
esac

# scaled T D: the epoch of EPOCHS that corresponds to epoch D of T.
scaled() {
    echo $((1 + (2 * ($2 - 1) * ${EPOCHS:-$1} + $1) / (2 * $1)))
}

# schedule T D...: options for T epochs with steps at epochs D, in proportion if EPOCHS is set; or SCHEDULE.
schedule() {
    echo "--epochs ${EPOCHS:-$1}${WARMUP:+ --warmup $WARMUP}${LR:+ --lr $LR}"
    if [ "${SCHEDULE:-step}" != step ]; then
        echo "--lr_schedule $SCHEDULE"
        return
    fi
    local total=$1 epochs=${EPOCHS:-$1} drop last=1 drops=''
    shift
    for drop; do
        drop=$(scaled "$total" "$drop")
        if [ "$drop" -gt "$last" ] && [ "$drop" -le "$epochs" ]; then
            drops=$drops,$drop
            last=$drop
        fi
    done
    echo "--epoch_step [${drops#,}]"
}

# quoted WORD...: words for a shell, in any locale (%q of printf depends on it).
quoted() {
    local word quote="'\\''"
    for word; do
        case $word in
            '' | *[!a-zA-Z0-9_./,:=+-]*) printf "'%s' " "${word//\'/$quote}" ;;
            *) printf '%s ' "$word" ;;
        esac
    done
}

# run SCRIPT NAME OPTIONS...: the command of a run with $seed.
run() {
    local script=$1 name=$2
    shift 2
    quoted "$script" --save "$LOGS/$seed/$name" --seed "$seed" "$@"
    echo "${ARGS:-}"
}

# --- CIFAR: variables that name networks -----------------------------------------------------------------------

nin_thin='--model nin --width 96'
nin_wide='--model nin --width 192'
wrn_10_1='--depth 10 --width 1'
wrn_16_1='--depth 16 --width 1'
wrn_16_2='--depth 16 --width 2'
wrn_40_1='--depth 40 --width 1'
wrn_40_2='--depth 40 --width 2'
resnet_20='--model resnet --depth 20'
resnet_56='--model resnet --depth 56'
resnet_8x4='--model resnet --depth 8 --width 4'
resnet_32x4='--model resnet --depth 32 --width 4'

# cifar NAME OPTIONS...
cifar() {
    local name=$1
    shift
    run cifar.py "$name" --dataset "${DATASET:-CIFAR10}" $(schedule 200 60 120 160) "$@"
}

# alone NETWORK
alone() {
    cifar "$1" ${!1}
}

# teacher NETWORK
teacher() {
    [ -n "${TEACHER:-}" ] || alone "$1"
}

# student NETWORK TEACHER METHOD OPTIONS...
student() {
    local network=$1 teacher=$2 method=$3
    shift 3
    cifar "${network}_${teacher}_$method" ${!network} --teacher_id "${TEACHER:-$LOGS/$seed/$teacher}" "$@"
}

# --- what a recipe does ----------------------------------------------------------------------------------------

# train COMMANDS, or print them.
train() {
    if [ -n "${PRINT:-}" ]; then
        printf '%s\n' "$1"
        return
    fi
    printf '%s\n' "$1" | "$PYTHON" -m tools.jobs --parent $$ --jobs "${JOBS:-1}" --gpus "${GPUS:-}"
}

# table N: train all rows and report Table N.
table() {
    local commands
    commands=$(set -e; rows)  # $( ) would ignore the outer set -e
    train "$commands"
    if [ -z "${PRINT:-}" ]; then
        "$PYTHON" -m tools.report --table "$1" "$LOGS" --plot "$LOGS/curves.png"
    fi
}
