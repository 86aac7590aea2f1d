# Sourced by every chain: reads a configuration, runs its rows, and tells the truth about them.
#
# A row is green only if its command ended with 0 and its check agrees; what this machine cannot run is skipped with
# the reason, which is found before the run and never from its outcome; everything else is red, and so is the exit code.
# shellcheck shell=bash disable=SC2034  # what is set here is used by the chains
set -euo pipefail

declare -a CONFIG_LINES=() USED=() LIST=() ARGS=() CHECK=()
declare -A KEY=() VALUE=() MACHINE=()
SUCCEEDED=0 FAILED=0 SKIPPED=0
export PYTHONUNBUFFERED=1

die() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

# --- Configuration ----------------------------------------------------------------------------------------

# open_config FILE MODE MODES...: loads the lines, and goes to the project's root.
open_config() {
    [ -n "$1" ] || die "usage: bash test_tipc/$(basename "$0") CONFIG MODE"
    [ -f "$1" ] || die "$1: no such configuration"
    CONFIG=$(realpath "$1") MODE=$2
    local mode number line
    shift 2
    for mode; do [ "$mode" != "$MODE" ] || break; done
    [ "$mode" = "$MODE" ] || die "mode '$MODE': this chain knows $*"
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    mapfile -t CONFIG_LINES <"$CONFIG"
    for number in "${!CONFIG_LINES[@]}"; do
        line=${CONFIG_LINES[$number]}
        # Some runners count blank lines, others do not.
        [ -n "$line" ] || config_error $((number + 1)) "is blank"
        [[ $line != *$'\r' && $line != *[[:blank:]] ]] || config_error $((number + 1)) "ends in a blank"
    done
}

config_error() {
    die "$CONFIG: line $1 $2"
}

# header LINE NAME: the line must be that header.
header() {
    [[ ${CONFIG_LINES[$1 - 1]:-} =~ ^=+$2=+$ ]] || config_error "$1" "should be ===$2==="
    USED[$1]=1
}

# field NAME LINE [KEY]: takes a line as KEY[NAME] and VALUE[NAME]; with KEY, that has to be its key.
field() {
    local line=${CONFIG_LINES[$2 - 1]:-}
    [[ $line == *:* ]] || config_error "$2" "should be ${3:-KEY}:VALUE"
    KEY[$1]=${line%%:*} VALUE[$1]=${line#*:}
    [[ ${VALUE[$1]} != *:* ]] || config_error "$2" "has two colons: parsers would cut it at the second"
    [[ -z ${3:-} || ${KEY[$1]} == "$3" ]] || config_error "$2" "should begin with $3:"
    USED[$2]=1
}

# supplied NAME LINE [PLACEHOLDER]: a line whose value is the chain's: the configuration can only say null, or that.
supplied() {
    field "$1" "$2"
    [[ ${VALUE[$1]} == null || ${VALUE[$1]} == "${3:-null}" ]] ||
        config_error "$2" "names '${VALUE[$1]}', but the chain decides that: write ${3:-null}"
}

# block_field NAME BLOCK KEY: the same as field for the line of that key after that header; empty if there is none.
block_field() {
    local number inside='' header='' line=''
    KEY[$1]=$3 VALUE[$1]=
    for number in "${!CONFIG_LINES[@]}"; do
        if [[ ${CONFIG_LINES[$number]} =~ ^=+([a-z_0-9]+)=+$ ]]; then
            inside=
            if [ "${BASH_REMATCH[1]}" = "$2" ]; then
                [ -z "$header" ] || config_error $((number + 1)) "is there for the second time"
                inside=1 header=1 USED[number + 1]=1
            fi
        elif [ -n "$inside" ] && [ "${CONFIG_LINES[$number]%%:*}" = "$3" ]; then
            [ -z "$line" ] || config_error $((number + 1)) "is there for the second time"
            # Values of these blocks may hold colons: they are of our own making or are not split again.
            line=1 VALUE[$1]=${CONFIG_LINES[$number]#*:} USED[number + 1]=1
        fi
    done
}

# accuracy_fields KEY...: lines of the block accuracy_params, each as accuracy_KEY.
accuracy_fields() {
    local key
    for key; do block_field "accuracy_$key" accuracy_params "$key"; done
}

# reject_unused: what no chain reads is a mistake, not a comment.
reject_unused() {
    local number
    for number in "${!CONFIG_LINES[@]}"; do
        case ${CONFIG_LINES[$number]} in
            '##' | 'null:null') ;;
            *) [ -n "${USED[number + 1]:-}" ] || config_error $((number + 1)) "is not used: '${CONFIG_LINES[$number]}'" ;;
        esac
    done
}

# split NAME: the values of a|b|c into LIST.
split() {
    IFS='|' read -r -a LIST <<<"${VALUE[$1]}"
    [ ${#LIST[@]} -gt 0 ] || die "$CONFIG: ${KEY[$1]}: has no value"
}

# choose NAME [MODE]: of mode=value|mode=value the one of the mode; any other value stands for all modes.
choose() {
    local item mode=${2:-$MODE}
    [[ ${VALUE[$1]} =~ (^|\|)[a-z_0-9]+= ]] || return 0
    split "$1"
    for item in "${LIST[@]}"; do
        if [ "${item%%=*}" = "$mode" ]; then
            VALUE[$1]=${item#*=}
            return
        fi
    done
    die "$CONFIG: ${KEY[$1]}: has no value for $mode"
}

given() {
    [ "$1" != null ] && [ -n "$1" ]
}

# option KEY VALUE: appends KEY=VALUE to ARGS unless one of them is null.
option() {
    if given "$1" && given "$2"; then ARGS+=("$1=$2"); fi
}

# add NAME [VALUE]: the same with the key of a field, and its value or ours.
add() {
    option "${KEY[$1]}" "${2-${VALUE[$1]}}"
}

# words TEXT: appends the words of a command line to ARGS.
words() {
    local -a these
    read -r -a these <<<"$1"
    ARGS+=("${these[@]}")
}

# python_command TEXT: begins ARGS anew with the interpreter and the words of a command line.
python_command() {
    ARGS=("$PYTHON")
    words "$1"
}

# model_and_python: lines 2 and 3 of every configuration.
model_and_python() {
    field model 2 model_name
    field python 3 python
    # The model's name becomes a folder that is emptied.
    [[ ${VALUE[model]} =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || config_error 2 "names no model"
    MODEL=${VALUE[model]}
}

# interpreter: PYTHON from the environment, else the one that `make demo` installs, else the configuration's.
interpreter() {
    if [ -z "${PYTHON:-}" ]; then
        if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=${VALUE[python]}; fi
    fi
    command -v "$PYTHON" >/dev/null || die "$PYTHON: no such interpreter; 'make demo' installs one, or set PYTHON"
}

# --- The 52 lines of train_infer_python.txt and what follows them ----------------------------------------------

# read_training_lines: lines 2 to 21.
read_training_lines() {
    model_and_python
    field gpu_list 4 gpu_list
    field device 5
    field autocast 6
    field epochs 7
    supplied save 8 ./output/
    field batch 9
    field weights 10
    field train_model 11 train_model_name
    field train_images 12 train_infer_img_dir
    field train_option 13
    field trainer 15 trainer
    field norm_train 16 norm_train
    field pact_train 17 pact_train
    field fpgm_train 18 fpgm_train
    field distill_train 19 distill_train
    field free_train1 20
    field free_train2 21
}

# read_train_config: all of it. Two blocks are ours: options by mode, and what results are held against.
read_train_config() {
    header 1 train_params
    read_training_lines
    header 23 eval_params
    field eval 24 eval
    field eval_option 25
    header 27 infer_params
    supplied export_folder 28 ./output/
    supplied export_weights 29
    field norm_export 30 norm_export
    field pact_export 31 quant_export
    field fpgm_export 32 fpgm_export
    field distill_export 33 distill_export
    supplied free_export1 34
    field free_export2 35
    field inference_dir 36 inference_dir
    field infer_model 37 infer_model
    field infer_export 38 infer_export
    field infer_quant 39 infer_quant
    field inference 40 inference
    field use_gpu 41
    field mkldnn 42
    field threads 43
    field infer_batch 44
    field tensorrt 45
    field precision 46
    supplied model_dir 47
    field images 48
    supplied results 49
    field benchmark 50
    field infer_option1 51
    field infer_option2 52
    local key
    for key in batch_size fp_items epoch --profiler_options flags; do
        block_field "bench_$key" train_benchmark_params $key
    done
    block_field random_input infer_benchmark_params random_infer_input
    for key in lite_train_lite_infer lite_train_whole_infer whole_train_whole_infer benchmark_train; do
        block_field "options_$key" mode_params $key
    done
    VALUE[mode_options]=${VALUE[options_$MODE]-}
    accuracy_fields reference tolerance train_loss results
    reject_unused
}

# check_prepared: prepare.sh has been run for this model and mode.
check_prepared() {
    [ "$(cat test_tipc/data/prepared 2>/dev/null)" = "$MODEL $MODE" ] ||
        die "the data is not that of $MODEL, $MODE; run first: bash test_tipc/prepare.sh $CONFIG $MODE"
}

# --- This machine -------------------------------------------------------------------------------------------

learn_machine() {
    local key value facts
    facts=$("$PYTHON" test_tipc/machine.py) || die "$PYTHON cannot run test_tipc/machine.py: is the project installed?"
    while IFS='=' read -r key value; do MACHINE[$key]=$value; done <<<"$facts"
    echo "interpreter $PYTHON; $(tr '\n' ' ' <<<"$facts")"
}

# no_gpus NUMBER...: prints why these GPUs cannot be used, if so.
no_gpus() {
    local number
    if [ "${MACHINE[cuda]}" = 0 ]; then
        echo "this Paddle is built for CPUs only"
        return
    fi
    for number; do
        if [ "$number" -ge "${MACHINE[gpus]}" ]; then
            echo "there is no GPU $number, this machine has ${MACHINE[gpus]}"
            return
        fi
    done
}

# no_bf16: prints why bfloat16 cannot be computed on this CPU, if so.
no_bf16() {
    [ "${MACHINE[bf16]}" = 1 ] || echo "this CPU has no AVX512_BF16"
}

# no_vnni: prints why 8 bits cannot be computed on this CPU, if so.
no_vnni() {
    [ "${MACHINE[vnni]}" = 1 ] || echo "this CPU has no VNNI"
}

# --- Training ---------------------------------------------------------------------------------------------

# nodes_of GPUS: how many machines it names.
nodes_of() {
    local -a machines=(this)
    if [[ $1 == *';'* ]]; then IFS=',' read -r -a machines <<<"${1%%;*}"; fi
    echo "${#machines[@]}"
}

# launch GPUS LOGS: how a training is started, into ARGS; RANKS is how many of its processes log here, LAUNCH_LOGS
# where, if they are several, OBSTACLE why this machine cannot run it.
#
# GPUS is -1 (CPU), -1,-1 (two processes on the CPU), 0 or 0,1 (these GPUs), or IP,IP;GPUS (machines).
launch() {
    local ips='' gpus=${1#*;} nodes
    local -a cards=()
    ARGS=("$PYTHON") LAUNCH_LOGS='' OBSTACLE=''
    if [[ $1 == *';'* ]]; then ips=${1%%;*}; fi
    nodes=$(nodes_of "$1")
    [[ $gpus =~ ^(-1(,-1)*|[0-9]+(,[0-9]+)*)$ && $ips =~ ^[0-9.,]*$ ]] || die "$CONFIG: gpu_list: what is '$1'?"
    IFS=',' read -r -a cards <<<"$gpus"
    RANKS=$((nodes * ${#cards[@]}))
    if [ "${cards[0]}" != -1 ]; then OBSTACLE=$(no_gpus "${cards[@]}"); fi
    [ "$RANKS" -gt 1 ] || return 0
    LAUNCH_LOGS=$2
    if [[ $ips =~ ^127\.0\.0\.1(,127\.0\.0\.1)+$ ]]; then
        # All machines are this one, which starts them all.
        ARGS=(bash test_tipc/launch_nodes.sh "$PYTHON" "$nodes" "${#cards[@]}" "$LAUNCH_LOGS")
        if [ "${cards[0]}" != -1 ]; then OBSTACLE=${OBSTACLE:-"machines that are one cannot share its GPUs"}; fi
        return
    fi
    ARGS+=(-m paddle.distributed.launch --log_dir "$LAUNCH_LOGS")
    if [ "${cards[0]}" = -1 ]; then
        ARGS+=(--nproc_per_node "${#cards[@]}")
    else
        ARGS+=("--devices=$gpus")
    fi
    if [ -n "$ips" ]; then
        # The chain is started on each machine; only its own processes log there.
        ARGS+=("--ips=$ips")
        RANKS=${#cards[@]}
        is_here "$ips" || OBSTACLE=${OBSTACLE:-"none of the addresses $ips is this machine's"}
    fi
}

is_here() {
    local address
    for address in $(hostname -I); do
        [[ ",$1," != *",$address,"* ]] || return 0
    done
    return 1
}

# trainer_commands TRAINER: the commands of one of the trainers, TRAIN and EXPORT; QUANTISED is what kind of model.
trainer_commands() {
    QUANTISED=False
    given "$1" || die "$CONFIG: trainer:$1 is none of the trainers below it"
    case $1 in
        norm_train) TRAIN=${VALUE[norm_train]} EXPORT=${VALUE[norm_export]-} ;;
        pact_train) TRAIN=${VALUE[pact_train]} EXPORT=${VALUE[pact_export]-} QUANTISED=True ;;
        fpgm_train) TRAIN=${VALUE[fpgm_train]} EXPORT=${VALUE[fpgm_export]-} ;;
        distill_train) TRAIN=${VALUE[distill_train]} EXPORT=${VALUE[distill_export]-} ;;
        "${KEY[free_train1]}")
            TRAIN=null EXPORT=${VALUE[norm_export]-}
            if given "${VALUE[norm_train]}" && given "${VALUE[free_train1]}"; then
                TRAIN="${VALUE[norm_train]} ${VALUE[free_train1]}"
            fi
            ;;
        "${KEY[free_train2]}") TRAIN=${VALUE[free_train2]} EXPORT=${VALUE[free_export2]-} ;;
        *) die "$CONFIG: trainer:$1 is none of the trainers below it" ;;
    esac
    given "$TRAIN" || die "$CONFIG: trainer:$1 has no command"
}

# train_command GPUS DEVICE AUTOCAST TRAINER SAVE LOG: what starts a training, into ARGS, what checks it, into CHECK.
train_command() {
    local -a shows=()
    trainer_commands "$4"
    launch "$1" "$5_launch"
    WEIGHTS=$5/$MODEL/${VALUE[train_model]} # the official place: a folder of the model's name
    words "$TRAIN"
    words "${VALUE[mode_options]}"
    option "${KEY[device]}" "$2"
    add save "$5"
    add epochs
    add weights
    case $3 in
        null | fp32) ;;
        amp) ARGS+=(--amp) ;;
        bf16) ARGS+=(--precision=bf16) OBSTACLE=${OBSTACLE:-$(no_bf16)} ;;
        *) die "$CONFIG: ${KEY[autocast]}: train.py knows no '$3'" ;;
    esac
    add batch
    add train_option
    # A single GPU by its number; several are dealt out by the launcher.
    if [[ $1 =~ ^[0-9]+$ ]]; then ARGS+=("--gpu_devices=$1"); fi
    # What the log of a training has to say that really ran as asked.
    if [ "$3" = bf16 ]; then shows+=("engine: onednn, bf16"); fi
    if [[ " ${ARGS[*]} " == *" --to_static "* ]]; then
        shows+=("static graph: [1-9]")
    elif [[ $1 != *-1* ]]; then
        shows+=("gpu:[0-9]+ is in use")
    fi
    CHECK=("$PYTHON" test_tipc/check_row.py train --log "$6" --weights "$WEIGHTS" --loss "${VALUE[accuracy_train_loss]}"
        --ranks "$RANKS" --launch_logs "$LAUNCH_LOGS" --shows "${shows[@]}")
}

# --- Rows ---------------------------------------------------------------------------------------------------

# start_chain STATUS_LOG_NAME: an empty folder for the results of this model and mode, if its data is prepared.
#
# BROKEN is what failed, so that what depends on it cannot run; OBSTACLE is why this machine cannot run a row.
start_chain() {
    BROKEN='' OBSTACLE=''
    interpreter
    check_prepared
    learn_machine
    OUTPUT=test_tipc/output/$MODEL/$MODE
    rm -rf "$OUTPUT"
    mkdir -p "$OUTPUT"
    STATUS_LOG=$OUTPUT/$1
    : >"$STATUS_LOG"
    # Lite rows take seconds: one that hangs is ended. 0 is no limit.
    case $MODE in
        whole_train_*) ROW_SECONDS=${TIPC_ROW_SECONDS:-0} ;;
        *) ROW_SECONDS=${TIPC_ROW_SECONDS:-1200} ;;
    esac
}

# Whatever ends the chain ends what it has started.
RUNNING='' SERVING=''
end_all() {
    local process
    for process in $RUNNING $SERVING; do
        kill "$process" 2>/dev/null || continue
    done
}
interrupted() {
    echo "interrupted" >&2
    exit 130
}
trap end_all EXIT
trap interrupted INT TERM

status() {
    printf '\033[33m Run %s with command - %s - %s - %s ! \033[0m\n' "$1" "$MODEL" "$2" "$3" | tee -a "$STATUS_LOG"
}

# verdict CODE LOG COMMAND...: counts a row, and tells how it ended.
verdict() {
    local code=$1 log=$2
    shift 2
    if [ "$code" -eq 0 ]; then
        SUCCEEDED=$((SUCCEEDED + 1))
        status successfully "$*" "$log"
    else
        FAILED=$((FAILED + 1))
        status failed "$*" "$log"
    fi
}

# run_row LOG: runs ARGS with their output in LOG, then CHECK, if the caller has filled it. Returns 1 on failure.
run_row() {
    local log=$1 code=0 shown
    if [ -e "$log" ]; then
        echo "two rows of $CONFIG have the log $log" >&2
        code=1
    else
        # In the background, so that Ctrl-C is heard; timeout ends whatever the command has started.
        : >"$log"
        timeout -k 30 "$ROW_SECONDS" "${ARGS[@]}" >"$log" 2>&1 &
        RUNNING=$!
        tail -n +1 -s 0.1 -f --pid="$RUNNING" "$log" &
        shown=$!
        wait "$RUNNING" || code=$?
        RUNNING=''
        wait "$shown"
        case $code in
            0) ;;
            124 | 137) echo "ended after $ROW_SECONDS seconds" | tee -a "$log" ;;
            *) echo "exit code $code" | tee -a "$log" ;;
        esac
        if [ $code -eq 0 ] && [ ${#CHECK[@]} -gt 0 ]; then
            "${CHECK[@]}" 2>&1 | tee -a "$log" || code=$?
        fi
    fi
    verdict $code "$log" "${ARGS[@]}"
    [ $code -eq 0 ]
}

# attempt LOG [REASON]: runs ARGS; skips them for a reason or an OBSTACLE on this machine, and if what they need is
# BROKEN, they are red without a run. Returns 1 if they ran and failed.
attempt() {
    local reason=${OBSTACLE:-${2-}} code=0
    if [ -n "$reason" ]; then
        SKIPPED=$((SKIPPED + 1))
        status "skipped ($reason)" "${ARGS[*]}" "$1"
    elif [ -n "$BROKEN" ]; then
        echo "not run: $BROKEN" | tee "$1"
        verdict 1 "$1" "${ARGS[@]}"
    else
        run_row "$1" || code=1
    fi
    CHECK=()
    return $code
}

# side_step LOG [REASON]: the same; nothing depends on it.
side_step() {
    attempt "$@" || return 0
}

# step LOG: the same; if it fails, it blocks what comes after it.
step() {
    attempt "$1" || BROKEN="$(basename "$1" .log) failed"
}

# export_weights FOLDER: the step that exports the configuration's weights.
export_weights() {
    python_command "${VALUE[export]}"
    add weights
    ARGS+=("--save_dir=$1")
    CHECK=("$PYTHON" test_tipc/check_row.py export --model "$1" --weights "${VALUE[weights]}")
    step "$OUTPUT/export.log"
}

# results_of LOG: the folder for the pictures of an inference.
results_of() {
    echo "${1%.log}_results"
}

# infer_row LOG REASON PRECISION FACT=VALUE...: runs ARGS, which write to results_of LOG. The log has to show the facts,
# and the pictures to agree with those of the network itself. Nothing depends on it: what follows runs all the same.
infer_row() {
    local log=$1 reason=$2 precision=$3
    shift 3
    CHECK=("$PYTHON" test_tipc/check_row.py infer --log "$log" --images "${VALUE[images]}"
        --results "$(results_of "$log")" --clean test_tipc/data/clean --reference "$REFERENCE"
        --tolerance "${VALUE[accuracy_tolerance]}" --precision "$precision" --facts "precision=$precision" "$@")
    side_step "$log" "$reason"
}

# reference_row WEIGHTS NAME: what the network itself makes of the pictures, into NAME_reference.
reference_row() {
    REFERENCE=$2_reference
    python_command "${VALUE[accuracy_reference]}"
    ARGS+=("--model_path=$1" "--image_path=${VALUE[images]}" "--save_dir=$REFERENCE")
    step "$REFERENCE.log"
}

# without PACKAGE...: prints which package is missing here, if one is.
without() {
    local package
    for package; do
        [ "${MACHINE[$package]-0}" = 1 ] || { echo "$package is not installed" && return; }
    done
}

# finish: says how it went; 0 all green, 1 something red, 77 nothing could be run here.
finish() {
    echo "$MODEL $MODE: $SUCCEEDED successfully, $FAILED failed, $SKIPPED skipped; $STATUS_LOG"
    [ "$FAILED" -eq 0 ] || exit 1
    [ "$SUCCEEDED" -gt 0 ] || exit 77
    exit 0
}
