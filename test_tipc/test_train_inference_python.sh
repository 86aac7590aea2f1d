#!/usr/bin/env bash
# Trains, scores, exports and infers as a configuration says.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/train_infer_python.txt 'lite_train_lite_infer'
#   bash test_tipc/test_train_inference_python.sh test_tipc/configs/N2N/train_infer_python.txt 'lite_train_lite_infer'
#
# A third argument is the GPU to use with whole_infer. Exit code: 0 all green, 1 a row failed, 2 the configuration or
# the call is wrong, 77 this machine can run none of it.
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

# --- Inference ----------------------------------------------------------------------------------------------

# infer_rows MODEL_DIR NAME: one row for every combination of the configuration.
infer_rows() {
    local use_gpu precision
    local -a use_gpus mkldnns threads batches precisions tensorrts
    split use_gpu && use_gpus=("${LIST[@]}")
    split mkldnn && mkldnns=("${LIST[@]}")
    split threads && threads=("${LIST[@]}")
    split infer_batch && batches=("${LIST[@]}")
    split precision && precisions=("${LIST[@]}")
    split tensorrt && tensorrts=("${LIST[@]}")
    for use_gpu in "${use_gpus[@]}"; do
        case $use_gpu in
            False) infer_on_cpu "$@" ;;
            True) infer_on_gpu "$@" ;;
        esac
    done
}

infer_on_cpu() {
    local mkldnn thread batch precision log reason
    for mkldnn in "${mkldnns[@]}"; do
        for thread in "${threads[@]}"; do
            for batch in "${batches[@]}"; do
                for precision in "${precisions[@]}"; do
                    log=$OUTPUT/python_infer_cpu_gpus_$2_usemkldnn_${mkldnn}_threads_${thread}
                    log+=_precision_${precision}_batchsize_${batch}.log
                    reason=
                    case $precision:$mkldnn in
                        bf16:True) reason=$(no_bf16) ;;
                        bf16:False) reason="bf16 is computed by oneDNN only" ;;
                        int8:False) reason="int8 is computed by oneDNN only" ;;
                        fp16:*) reason="fp16 is computed on GPUs only" ;;
                    esac
                    infer_command "$1" "$log"
                    add mkldnn "$mkldnn"
                    add threads "$thread"
                    infer_row "$log" "$reason" "$precision" "batch_size=$batch" runtime_device=cpu \
                        "enable_mkldnn=$mkldnn" "cpu_math_library_num_threads=$thread"
                done
            done
        done
    done
}

infer_on_gpu() {
    local tensorrt batch precision log reason
    for tensorrt in "${tensorrts[@]}"; do
        for precision in "${precisions[@]}"; do
            for batch in "${batches[@]}"; do
                log=$OUTPUT/python_infer_gpu_gpus_$2_usetrt_${tensorrt}_precision_${precision}_batchsize_${batch}.log
                reason=$(no_gpus 0)
                if [ -z "$reason" ] && [ "$tensorrt" = True ] && [ "${MACHINE[tensorrt]}" = 0 ]; then
                    reason="this Paddle is built without TensorRT"
                elif [ -z "$reason" ] && [ "$precision" = bf16 ]; then
                    reason="bf16 is computed on CPUs only"
                fi
                infer_command "$1" "$log"
                add tensorrt "$tensorrt"
                infer_row "$log" "$reason" "$precision" "batch_size=$batch" runtime_device=gpu \
                    "enable_tensorrt=$tensorrt"
            done
        done
    done
}

# infer_command MODEL_DIR LOG: the part of the command that all devices share, into ARGS.
infer_command() {
    python_command "${VALUE[inference]}"
    add use_gpu "$use_gpu"
    add model_dir "$1"
    add infer_batch "$batch"
    add precision "$precision"
    add images
    add benchmark
    add infer_option1
    add infer_option2
    add results "$(results_of "$2")"
}

# random_rows MODEL_DIR NAME: the speed on random input of the shape in infer_benchmark_params, for each batch size, on
# the first device of the configuration.
random_rows() {
    local batch log reason='' shape use_gpu precision
    local -a batches facts
    given "${VALUE[random_input]:-null}" || return 0
    [[ ${VALUE[random_input]} =~ ^\[\{float32,\[([0-9]+,[0-9]+,[0-9]+)\]\}\]$ ]] ||
        die "$CONFIG: random_infer_input: should be like [{float32,[3,256,256]}]"
    shape=${BASH_REMATCH[1]}
    split infer_batch && batches=("${LIST[@]}")
    split use_gpu && use_gpu=${LIST[0]}
    split precision && precision=${LIST[0]}
    for batch in "${batches[@]}"; do
        log=$OUTPUT/python_random_input_$2_batchsize_$batch.log
        python_command "${VALUE[inference]}"
        add use_gpu "$use_gpu"
        add model_dir "$1"
        add precision "$precision"
        add benchmark
        ARGS+=("--random_input=$batch,$shape" --repeats=5)
        facts=("data_num=$((batch * 5))" "input_shape=($batch, ${shape//,/, })" "precision=$precision")
        if [ "$use_gpu" = True ]; then
            reason=$(no_gpus 0)
            facts+=(runtime_device=gpu)
        else
            split mkldnn
            add mkldnn "${LIST[0]}"
            facts+=(runtime_device=cpu "enable_mkldnn=${LIST[0]}")
            split threads
            add threads "${LIST[0]}"
            facts+=("cpu_math_library_num_threads=${LIST[0]}")
        fi
        CHECK=("$PYTHON" test_tipc/check_row.py speed --log "$log" --facts "${facts[@]}")
        side_step "$log" "$reason"
    done
}

# --- Training -----------------------------------------------------------------------------------------------

# train_row GPUS DEVICE AUTOCAST TRAINER: trains, and what follows from it.
train_row() {
    local gpus=${1#*;} save model
    save=$OUTPUT/$4_gpus_${gpus}_autocast_$3_nodes_$(nodes_of "$1") BROKEN=''
    train_command "$1" "$2" "$3" "$4" "$save" "$save.log"
    step "$save.log"
    eval_rows "$WEIGHTS" "$2" "$save"
    given "$EXPORT" || return 0
    reference_row "$WEIGHTS" "$save"
    model=$save
    if given "${VALUE[inference_dir]}"; then model+=/${VALUE[inference_dir]}; fi
    # An export in 8 bits is run, too.
    if [ "$QUANTISED" = True ]; then OBSTACLE=${OBSTACLE:-$(no_vnni)}; fi
    export_row "$EXPORT" "$WEIGHTS" "$model" "${save}_export.log"
    infer_rows "$model" "$gpus"
}

# eval_rows WEIGHTS DEVICE NAME: the scores of weights, for each value of the option in line 25.
eval_rows() {
    local value log
    local -a values
    given "${VALUE[eval]}" || return 0
    split eval_option && values=("${LIST[@]}")
    for value in "${values[@]}"; do
        log=$3_eval.log
        [ ${#values[@]} -eq 1 ] || log=$3_eval_$value.log
        python_command "${VALUE[eval]}"
        option "${KEY[weights]}" "$1"
        option "${KEY[device]}" "$2"
        add eval_option "$value"
        CHECK=("$PYTHON" test_tipc/check_row.py eval --log "$log")
        step "$log"
    done
}

# export_row COMMAND WEIGHTS FOLDER LOG
export_row() {
    python_command "$1"
    add export_weights "$2"
    add export_folder "$3"
    CHECK=("$PYTHON" test_tipc/check_row.py export --model "$3" --weights "$2")
    step "$4"
}

# --- The chain ----------------------------------------------------------------------------------------------

# check_values: what could only fail after minutes of training.
check_values() {
    local value quantised
    local -a kinds=()
    if ! given "${VALUE[inference]}"; then
        # Weights that no runtime takes are trained and scored, and the lines about runtimes have nothing to say.
        for value in norm_export pact_export fpgm_export distill_export infer_export train_images use_gpu mkldnn threads \
            infer_batch tensorrt precision images benchmark infer_option1 infer_option2 random_input accuracy_reference \
            accuracy_tolerance; do
            ! given "${VALUE[$value]}" || die "$CONFIG: ${KEY[$value]}: is not used, because inference is null"
        done
    else
        split use_gpu
        for value in "${LIST[@]}"; do
            [[ $value =~ ^(True|False)$ ]] || die "$CONFIG: ${KEY[use_gpu]}: '$value' is neither True nor False"
        done
    fi
    if [ "$MODE" = whole_infer ]; then
        split infer_quant && kinds=("${LIST[@]}")
    else
        split trainer
        for value in "${LIST[@]}"; do
            trainer_commands "$value"
            kinds+=("$QUANTISED")
            [ "$(given "$EXPORT" && echo 1)" = "$(given "${VALUE[inference]}" && echo 1)" ] ||
                die "$CONFIG: trainer:$value has an export without an inference, or an inference without an export"
        done
    fi
    given "${VALUE[inference]}" || return 0
    split precision
    for value in "${LIST[@]}"; do
        for quantised in "${kinds[@]}"; do
            [[ $quantised:$value =~ ^(True:int8|False:(fp32|bf16|fp16))$ ]] ||
                die "$CONFIG: ${KEY[precision]}: '$value' does not go with a model whose quantisation is '$quantised'"
        done
    done
}

whole_infer() {
    local -a models exports quants
    local index logs
    given "${VALUE[infer_model]}" || die "$CONFIG: infer_model:null: there are no finished weights for whole_infer"
    split infer_model && models=("${LIST[@]}")
    split infer_export && exports=("${LIST[@]}")
    split infer_quant && quants=("${LIST[@]}")
    [ "${#exports[@]},${#quants[@]}" = "${#models[@]},${#models[@]}" ] ||
        die "$CONFIG: infer_model, infer_export and infer_quant differ in length"
    for index in "${!exports[@]}"; do
        [ "$(given "${exports[index]}" && echo 1)" = "$(given "${VALUE[inference]}" && echo 1)" ] ||
            die "$CONFIG: infer_export: has an export without an inference, or an inference without an export"
    done
    logs="$OUTPUT/python_infer_*.log"
    for index in "${!models[@]}"; do
        BROKEN='' OBSTACLE=''
        if ! given "${VALUE[inference]}"; then
            # What no runtime takes is scored as it is.
            logs="$OUTPUT/model_*_eval*.log"
            split device
            if [ "${LIST[0]}" = gpu ]; then OBSTACLE=$(no_gpus 0); fi
            eval_rows "${models[index]}" "${LIST[0]}" "$OUTPUT/model_$index"
            continue
        fi
        reference_row "${models[index]}" "$OUTPUT/model_$index"
        if [ "${quants[index]}" = True ]; then OBSTACLE=$(no_vnni); fi
        export_row "${exports[index]}" "${models[index]}" "$OUTPUT/model_$index" "$OUTPUT/model_${index}_export.log"
        infer_rows "$OUTPUT/model_$index" "$index"
        random_rows "$OUTPUT/model_$index" "$index"
    done
    if given "${VALUE[accuracy_results]}"; then
        BROKEN='' OBSTACLE=''
        # Rows that are skipped have no logs, those that failed have.
        compgen -G "$logs" >/dev/null || OBSTACLE="no row with scores can be run here"
        ARGS=("$PYTHON" test_tipc/compare_results.py "--gt_file=${VALUE[accuracy_results]}" "--log_file=$logs")
        step "$OUTPUT/compare_results.log"
    fi
}

train_and_infer() {
    local index autocast trainer
    local -a gpus devices autocasts trainers
    split gpu_list && gpus=("${LIST[@]}")
    split device && devices=("${LIST[@]}")
    split autocast && autocasts=("${LIST[@]}")
    split trainer && trainers=("${LIST[@]}")
    # One device for all, or one for each.
    [ ${#devices[@]} -eq 1 ] || [ ${#devices[@]} -eq ${#gpus[@]} ] ||
        die "$CONFIG: ${KEY[device]}: has ${#devices[@]} values for ${#gpus[@]} of gpu_list"
    for index in "${!gpus[@]}"; do
        for autocast in "${autocasts[@]}"; do
            for trainer in "${trainers[@]}"; do
                train_row "${gpus[index]}" "${devices[index % ${#devices[@]}]}" "$autocast" "$trainer"
            done
        done
    done
}

open_config "${1-}" "${2-}" lite_train_lite_infer lite_train_whole_infer whole_train_whole_infer whole_infer
read_train_config
if [ "$MODE" != whole_infer ]; then
    choose epochs
    choose batch
    choose train_option
    # Line 12 has the pictures for what was just trained, line 48 those for finished weights.
    if given "${VALUE[train_images]}"; then VALUE[images]=${VALUE[train_images]}; fi
fi
check_values
start_chain results_python.log
if [ "$MODE" = whole_infer ]; then
    [ -z "${3-}" ] || export CUDA_VISIBLE_DEVICES=$3
    whole_infer
else
    train_and_infer
fi
finish
