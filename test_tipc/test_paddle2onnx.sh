#!/usr/bin/env bash
# Converts weights to ONNX, checks the file, and compares what each runtime makes of it with the network itself.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/model_linux_cpu_normal_normal_paddle2onnx_python_linux_cpu.txt 'paddle2onnx_infer'
#   bash test_tipc/test_paddle2onnx.sh test_tipc/configs/N2N/model_linux_cpu_normal_normal_paddle2onnx_python_linux_cpu.txt 'paddle2onnx_infer'
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

open_config "${1-}" "${2-}" paddle2onnx_infer
# The official lines; what is null here belongs to a converter that takes an exported model.
header 1 paddle2onnx_params
model_and_python
field convert 4 2onnx
field source 5
field source_program 6
field source_params 7
supplied target 8
field opset 9
field onnx_checker 10
field inference 11 inference
supplied onnx_file 12
field images 13
accuracy_fields reference tolerance runtimes
reject_unused

start_chain results_paddle2onnx.log
reference_row "${VALUE[source]}" "$OUTPUT/model"

python_command "${VALUE[convert]}"
add source
add source_program
add source_params
add target "$OUTPUT"
add opset
CHECK=("$PYTHON" test_tipc/check_row.py onnx --model "$OUTPUT/model.onnx" --weights "${VALUE[source]}"
    --full "${VALUE[onnx_checker]}")
# The conversion compares itself with the network on these.
OBSTACLE=$(without onnx onnxruntime)
step "$OUTPUT/paddle2onnx.log"
OBSTACLE=''

split accuracy_runtimes && runtimes=("${LIST[@]}")
for runtime in "${runtimes[@]}"; do
    log=$OUTPUT/paddle2onnx_infer_cpu_$runtime.log
    python_command "${VALUE[inference]}"
    add onnx_file "$OUTPUT/model.onnx"
    add images
    ARGS+=("--runtime=$runtime" "--save_dir=$(results_of "$log")")
    infer_row "$log" "$(without onnx onnxruntime "$runtime")" fp32 runtime_device=cpu
done
finish
