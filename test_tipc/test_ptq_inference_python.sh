#!/usr/bin/env bash
# Quantises weights to 8 bits by each method, and infers in 8 bits on each runtime: what it costs in dB is limited.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/train_ptq_infer_python.txt 'whole_infer'
#   bash test_tipc/test_ptq_inference_python.sh test_tipc/configs/N2N/train_ptq_infer_python.txt 'whole_infer'
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

declare -A FORMATS=([paddle]=pdmodel [openvino]=onnx [onnxruntime]=onnx)
declare -A NEEDS=([paddle]=onnx [openvino]=openvino [onnxruntime]=onnxruntime)

read_config() {
    header 1 ptq_params
    model_and_python
    field weights 5
    supplied target 6
    field calibration 7
    field batch_num 8
    field batch_size 9
    field trainer 11 trainer
    field ptq 12 PTQ
    header 14 infer_params
    field inference 15 inference
    field use_gpu 16
    field infer_batch 17
    supplied model_dir 18
    field images 19
    field benchmark 20
    local key
    accuracy_fields reference tolerance runs results
    reject_unused
    [ "${VALUE[trainer]}" = PTQ ] || config_error 11 "should be trainer:PTQ"
    [ "${VALUE[use_gpu]}" = False ] || config_error 16 "asks for 8 bits on a GPU, which needs TensorRT"
    split accuracy_runs
    for key in "${LIST[@]}"; do
        [[ -n ${FORMATS[${key#*=}]-} && $key =~ ^(kl|absmax|mse|percentile)= ]] || die "$CONFIG: runs: what is '$key'?"
        # Its own quantisation has this method alone.
        [[ $key != *=paddle || $key == absmax=* ]] || die "$CONFIG: runs: Paddle's ranges are those of absmax"
    done
}

# quantise METHOD FORMAT: into the folder of that name.
quantise() {
    local folder=$OUTPUT/$1_$2
    python_command "${VALUE[ptq]}"
    add weights
    add target "$folder"
    add calibration
    add batch_num
    add batch_size
    ARGS+=("--method=$1" "--format=$2")
    CHECK=("$PYTHON" test_tipc/check_row.py quantised --log "$folder.log" --model "$folder")
    OBSTACLE=$NOT_HERE
    step "$folder.log"
    OBSTACLE=''
}

# infer METHOD FORMAT RUNTIME: for each batch size.
infer() {
    local log batch
    for batch in "${batches[@]}"; do
        log=$OUTPUT/python_infer_cpu_${3}_$1_precision_int8_batchsize_$batch.log
        python_command "${VALUE[inference]}"
        add use_gpu
        add infer_batch "$batch"
        add model_dir "$OUTPUT/$1_$2"
        add images
        add benchmark
        ARGS+=("--runtime=$3" --precision=int8 "--save_dir=$(results_of "$log")")
        infer_row "$log" "${NOT_HERE:-$(without "${NEEDS[$3]}")}" int8 runtime_device=cpu "batch_size=$batch"
    done
}

open_config "${1-}" "${2-}" whole_infer
read_config
start_chain results_python.log
# What chooses the ranges, and measures, runs on this.
NOT_HERE=$(without onnx openvino)
NOT_HERE=${NOT_HERE:-$(no_vnni)}
split accuracy_runs && runs=("${LIST[@]}")
split infer_batch && batches=("${LIST[@]}")
reference_row "${VALUE[weights]}" "$OUTPUT/model"
NO_REFERENCE=$BROKEN
declare -A MADE=() # what is wrong with a model that has been made: nothing, or what failed
for run in "${runs[@]}"; do
    method=${run%%=*} runtime=${run#*=}
    format=${FORMATS[$runtime]-}
    BROKEN=$NO_REFERENCE
    if [ -z "${MADE[${method}_$format]+made}" ]; then
        quantise "$method" "$format"
        MADE[${method}_$format]=$BROKEN
    fi
    BROKEN=${MADE[${method}_$format]}
    infer "$method" "$format" "$runtime"
done
if given "${VALUE[accuracy_results]:-null}"; then
    BROKEN=$NO_REFERENCE OBSTACLE=$NOT_HERE
    ARGS=("$PYTHON" test_tipc/compare_results.py "--gt_file=${VALUE[accuracy_results]}"
        "--log_file=$OUTPUT/python_infer_*.log")
    step "$OUTPUT/compare_results.log"
fi
finish
