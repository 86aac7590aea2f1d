#!/usr/bin/env bash
# Paddle Inference from C++: the rows are listed and skipped. This project has no C++ program, and the library that one
# would be built on comes as an archive from Paddle's site alone. See docs/test_inference_cpp.md.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/model_linux_gpu_normal_normal_infer_cpp_linux_gpu_cpu.txt 'cpp_infer'
#   bash test_tipc/test_inference_cpp.sh test_tipc/configs/N2N/model_linux_gpu_normal_normal_infer_cpp_linux_gpu_cpu.txt 'cpp_infer'
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

open_config "${1-}" "${2-}" cpp_infer
header 1 cpp_params
model_and_python
field weights 4
field export 5 export
field inference 6 inference
field use_gpu 7
field mkldnn 8
field threads 9
field infer_batch 10
field precision 11
supplied model_dir 12
field images 13
reject_unused

start_chain results_cpp.log
# What can be true: the model that a C++ program would load is exported.
export_weights "$OUTPUT/model"

! given "${VALUE[inference]}" || die "$CONFIG: inference: there is no C++ program to run"
OBSTACLE="this project has no C++ program"
split use_gpu && use_gpus=("${LIST[@]}")
split mkldnn && mkldnns=("${LIST[@]}")
split threads && threads=("${LIST[@]}")
split infer_batch && batches=("${LIST[@]}")
for use_gpu in "${use_gpus[@]}"; do
    for mkldnn in "${mkldnns[@]}"; do
        for thread in "${threads[@]}"; do
            for batch in "${batches[@]}"; do
                ARGS=(inference_cpp)
                add use_gpu "$use_gpu"
                add mkldnn "$mkldnn"
                add threads "$thread"
                add infer_batch "$batch"
                add precision
                add model_dir "$OUTPUT/model"
                add images
                side_step "$OUTPUT/cpp_infer_usegpu_${use_gpu}_usemkldnn_${mkldnn}_threads_${thread}_batchsize_$batch.log"
            done
        done
    done
done
finish
