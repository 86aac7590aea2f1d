#!/usr/bin/env bash
# Trains twice, layer by layer and as a static graph: every printed loss has to be the same to its last digit.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/train_dy2static_python.txt 'lite_train_lite_infer'
#   bash test_tipc/test_train_dy2static_python.sh test_tipc/configs/N2N/train_dy2static_python.txt
#
# A configuration holds blocks of 22 lines, the first lines of train_infer_python.txt, each headed === NAME ===.
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

# both NAME: the two trainings of a block, and the comparison of their logs.
both() {
    local kind
    local -A logs=()
    BROKEN=''
    for kind in norm_train "${KEY[free_train1]}"; do
        [ "$kind" != null ] || die "$CONFIG: block $1: line 20 should be to_static_train:OPTIONS"
        logs[$kind]=$OUTPUT/$1_$kind.log
        train_command "${VALUE[gpu_list]}" "${VALUE[device]}" "${VALUE[autocast]}" "$kind" "${logs[$kind]%.log}" "${logs[$kind]}"
        step "${logs[$kind]}"
    done
    ARGS=("$PYTHON" test_tipc/extract_loss.py "${logs[norm_train]}" "${logs[${KEY[free_train1]}]}")
    step "$OUTPUT/$1_diff_log.txt"
}

open_config "${1-}" "${2-lite_train_lite_infer}" lite_train_lite_infer
ALL=("${CONFIG_LINES[@]}") NAMES=()
for ((first = 0; first < ${#ALL[@]}; first += 22)); do
    [[ ${ALL[first]} =~ ^=+\ ([a-z_0-9]+)\ =+$ ]] || config_error $((first + 1)) "should be === NAME ==="
    NAMES+=("${BASH_REMATCH[1]}")
done
[ ${#NAMES[@]} -gt 0 ] || die "$CONFIG: is empty"
for index in "${!NAMES[@]}"; do
    CONFIG_LINES=("${ALL[@]:index * 22:22}") USED=([1]=1)
    read_training_lines
    reject_unused
    choose epochs
    choose batch
    VALUE[mode_options]='' VALUE[accuracy_train_loss]=finite
    if [ "$index" = 0 ]; then
        start_chain results_python.log
    fi
    both "${NAMES[index]}"
done
finish
