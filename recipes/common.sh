# What the recipes of the paper's tables share. A recipe defines `rows`, which writes commands for tools/jobs.py,
# and ends with `table N`. Settings come from the environment:
#   JOBS=4 runs so many at once, GPUS=0,1 on these GPUs in turn
#   EPOCHS=12 shortens the schedule, drops of the learning rate in proportion
#   SCHEDULE=linear or cosine in place of drops; WARMUP=1 epochs; LR=0.1, the learning rate at its peak
#   SEEDS='1 2 3', DATASET=CIFAR100, LOGS=folder, PYTHON=python3
#   ARGS='--dataroot data --device cpu' goes to every run
#   PRINT=1 only writes the commands
# A recipe that was stopped goes on where it was when it is started again.
set -euf  # f: [60,120,160] is no pattern of file names
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
    0* | *[!0-9]*) refuse "EPOCHS=$EPOCHS: give the epochs of each run as a whole number from 1" ;;
esac

# scaled T D: where the start of epoch D of T lies in EPOCHS epochs.
scaled() {
    echo $((1 + (2 * ($2 - 1) * ${EPOCHS:-$1} + $1) / (2 * $1)))
}

# schedule T D...: options for T epochs with drops at epochs D, or for EPOCHS in proportion; or SCHEDULE.
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

# quoted WORD...: for any locale, which %q of printf is not.
quoted() {
    local word quote="'\\''"
    for word; do
        case $word in
            '' | *[!a-zA-Z0-9_./,:=+-]*) printf "'%s' " "${word//\'/$quote}" ;;
            *) printf '%s ' "$word" ;;
        esac
    done
}

# run SCRIPT NAME OPTIONS...: a run with $seed.
run() {
    local script=$1 name=$2
    shift 2
    quoted "$script" --save "$LOGS/$seed/$name" --seed "$seed" "$@"
    echo "${ARGS:-}"
}

# All before must have ended well before what follows starts.
stage() {
    echo wait
}

# --- CIFAR: variables that name networks -----------------------------------------------------------------------

nin_thin='--model nin --width 96'
nin_wide='--model nin --width 192'
wrn_16_1='--depth 16 --width 1'
wrn_16_2='--depth 16 --width 2'
wrn_40_1='--depth 40 --width 1'
wrn_40_2='--depth 40 --width 2'

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

# student NETWORK TEACHER METHOD OPTIONS...
student() {
    local network=$1 teacher=$2 method=$3
    shift 3
    cifar "${network}_${teacher}_$method" ${!network} --teacher_id "$LOGS/$seed/$teacher" "$@"
}

# --- what a recipe does ----------------------------------------------------------------------------------------

# train COMMANDS, or write them.
train() {
    if [ -n "${PRINT:-}" ]; then
        printf '%s\n' "$1"
        return
    fi
    printf '%s\n' "$1" | "$PYTHON" -m tools.jobs --parent $$ --jobs "${JOBS:-1}" --gpus "${GPUS:-}"
}

# table N: train all rows, report Table N.
table() {
    local commands
    commands=$(set -e; rows)  # bash takes it back in $( )
    train "$commands"
    if [ -z "${PRINT:-}" ]; then
        "$PYTHON" -m tools.report --table "$1" "$LOGS" --plot "$LOGS/curves.png"
    fi
}
