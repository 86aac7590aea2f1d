#!/usr/bin/env bash
# Measures the speed of training, and writes one log and one record of the speed for each way to run it.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/train_infer_python.txt 'benchmark_train'
#   bash test_tipc/benchmark_train.sh test_tipc/configs/N2N/train_infer_python.txt 'benchmark_train'
#   bash test_tipc/benchmark_train.sh test_tipc/configs/N2N/train_infer_python.txt 'benchmark_train' dynamic_bs4_fp32_DP_N1C2
#
# The third argument is dynamic or dynamicTostatic, the batch size, the precision, and NxCy: y processes (or cards) in
# all on x machines. Without it, everything in the block train_benchmark_params runs, on one process and on two.
# Results go to $BENCHMARK_LOG_DIR, unless set the chain's output folder: train_log/*_log and index/*_speed.
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

# gpus_of NxCy: how gpu_list writes it.
gpus_of() {
    [[ $1 =~ ^N([1-9][0-9]*)C([1-9][0-9]*)$ ]] || die "'$1' is not NxCy"
    local count=${BASH_REMATCH[1]} each=$((BASH_REMATCH[2] / BASH_REMATCH[1])) first=0 list='' number
    [ $((each * count)) -eq "${BASH_REMATCH[2]}" ] || die "$1: so many cards do not divide among the machines"
    for ((number = 0; number < each; number++)); do
        if [ "$DEVICE" = cpu ]; then first=-1; else first=$number; fi
        list+=,$first
    done
    list=${list#,}
    if [ "$count" -gt 1 ]; then
        [ "${VALUE[gpu_list]%%;*}" != "${VALUE[gpu_list]}" ] || die "$1: gpu_list names no machines"
        list="${VALUE[gpu_list]%%;*};$list"
        [ "$(nodes_of "$list")" -eq "$count" ] || die "$1: gpu_list names another number of machines"
    fi
    echo "$list"
}

# measure TYPE BATCH PRECISION MODE NxCy
measure() {
    local trainer=norm_train autocast=null name gpus log index suffix=''
    case $1 in
        dynamic) ;;
        dynamicTostatic) trainer=${KEY[free_train1]} suffix=_d2sT ;;
        *) die "$1: is neither dynamic nor dynamicTostatic" ;;
    esac
    case $3 in
        fp32 | null) ;;
        bf16) autocast=bf16 ;;
        fp16) autocast=amp ;;
        *) die "$3: is no precision that train.py knows" ;;
    esac
    gpus=$(gpus_of "$5")
    name=${MODEL}_bs$2_$3_$4_$5
    log=$LOGS/train_log/$(basename "$PWD")_${name}${suffix}_log
    index=$LOGS/index/$(basename "$PWD")_${name}${suffix}_speed
    VALUE[batch]=$2 BROKEN=''
    train_command "$gpus" "$DEVICE" "$autocast" "$trainer" "$OUTPUT/${name}$suffix" "$log"
    if [ "$autocast" = bf16 ] && [ "$DEVICE" != cpu ]; then OBSTACLE=${OBSTACLE:-"bf16 is for CPUs here"}; fi
    if [ "$autocast" = amp ] && [ "$DEVICE" = cpu ]; then
        OBSTACLE="fp16 is computed on GPUs only"
    elif [ "$autocast:$trainer" = "bf16:${KEY[free_train1]}" ]; then
        OBSTACLE=${OBSTACLE:-"bf16 is computed by the engine, whose operators have no static graph"}
    fi
    # BENCHMARK_LOG_DIR is not emptied: what is there of an earlier run would pass for what this one made.
    rm -f "$log" "$index"
    TRAIN_CHECK=("${CHECK[@]}")
    ANALYSIS=("$PYTHON" test_tipc/analysis.py --filename "$log" --speed_log_file "$index" --model_name "${name}$suffix"
        --base_batch_size "$2" --run_mode "$4" --fp_item "$3" --keyword ips: --convergence_key Loss1= --skip_steps 4
        --device_num "$5" --speed_unit images/s --started "$(date +%s.%N)")
    CHECK=(check_both)
    step "$log"
}

# shellcheck disable=SC2317,SC2329  # it is called through CHECK
check_both() {
    "${TRAIN_CHECK[@]}" && "${ANALYSIS[@]}"
}

open_config "${1-}" "${2-}" benchmark_train
read_train_config
VALUE[epochs]=${VALUE[bench_epoch]} VALUE[accuracy_train_loss]=finite
DEVICE=${VALUE[device]%%|*}
[[ ${VALUE[bench_batch_size]} && ${VALUE[bench_fp_items]} && ${VALUE[bench_epoch]} ]] || die "$CONFIG: has no block train_benchmark_params"
! given "${VALUE[bench_--profiler_options]:-null}" || die "$CONFIG: --profiler_options: train.py has no profiler"
start_chain results_benchmark.log
LOGS=${BENCHMARK_LOG_DIR:-$OUTPUT}
mkdir -p "$LOGS/train_log" "$LOGS/index" || die "BENCHMARK_LOG_DIR: cannot write to $LOGS"
LOGS=$(realpath "$LOGS")
if given "${VALUE[bench_flags]:-null}"; then
    IFS=';' read -r -a flags <<<"${VALUE[bench_flags]}"
    export "${flags[@]}"
fi
if [ -n "${3-}" ]; then
    [[ $3 =~ ^([A-Za-z]+)_bs([0-9]+)_([a-z0-9]+)_([A-Za-z]+)_(N[0-9]+C[0-9]+)$ ]] ||
        die "'$3': should be like dynamic_bs4_fp32_DP_N1C1"
    measure "${BASH_REMATCH[@]:1:5}"
else
    split bench_batch_size && batches=("${LIST[@]}")
    split bench_fp_items && precisions=("${LIST[@]}")
    for type in dynamic dynamicTostatic; do
        for batch in "${batches[@]}"; do
            for precision in "${precisions[@]}"; do
                for number in N1C1 N1C2; do
                    measure "$type" "$batch" "$precision" DP "$number"
                done
            done
        done
    done
fi
finish
