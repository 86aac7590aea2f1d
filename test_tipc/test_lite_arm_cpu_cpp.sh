#!/usr/bin/env bash
# Paddle Lite on an ARM phone: converts the model where Paddle Lite's opt is installed; the phone's rows are listed and
# skipped, as this project has no program for phones. See docs/test_lite_arm_cpu_cpp.md.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/N2N_lite_arm_cpu_cpp.txt 'lite_infer'
#   bash test_tipc/test_lite_arm_cpu_cpp.sh test_tipc/configs/N2N/N2N_lite_arm_cpu_cpp.txt 'lite_infer'
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

open_config "${1-}" "${2-}" lite_infer
header 1 lite_params
model_and_python
field weights 4
field export 5 export
field opt 6 opt
field threads 7
field infer_batch 8
field precision 9
reject_unused

start_chain results_lite.log
export_weights "$OUTPUT/model"

ARGS=()
words "${VALUE[opt]}"
ARGS+=("--model_file=$OUTPUT/model/model.pdmodel" "--param_file=$OUTPUT/model/model.pdiparams"
    "--optimize_out=$OUTPUT/model_arm" --valid_targets=arm)
CHECK=(test -s "$OUTPUT/model_arm.nb")
command -v "${ARGS[0]}" >/dev/null || OBSTACLE="${ARGS[0]} of Paddle Lite is not installed"
step "$OUTPUT/lite_opt.log"

OBSTACLE="this project has no program for phones"
split threads && threads=("${LIST[@]}")
for thread in "${threads[@]}"; do
    ARGS=(adb shell lite_infer)
    add threads "$thread"
    add infer_batch
    add precision
    side_step "$OUTPUT/lite_infer_threads_$thread.log"
done
finish
