#!/usr/bin/env bash
# Everything that this machine can run: each configuration with its chain. A table at the end; 1 if anything is red, or
# if there is a configuration that no chain takes.
#
#   bash test_tipc/test_all.sh            all models; some fourteen minutes on two cores
#   bash test_tipc/test_all.sh Lite N2N   these
#
# whole_train_whole_infer, which takes a GPU a day or more, is not among it. Output: test_tipc/output/*.log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
trap 'exit 130' INT TERM
models=("$@")
if [ $# = 0 ]; then
    models=(test_tipc/configs/*)
    models=("${models[@]##*/}")
fi
for model in "${models[@]}"; do
    [ -d "test_tipc/configs/$model" ] || { echo "test_all.sh: error: test_tipc/configs/$model: no such model" >&2 && exit 2; }
done
mkdir -p test_tipc/output
declare -A taken=()
summary=() worst=0

# tell KIND SECONDS MODE CONFIG WORDS
tell() {
    summary+=("$(printf '%-12s %4d s  %-22s %s' "$1" "$2" "$3" "${4#test_tipc/configs/}")")
    echo "${summary[-1]}: $5"
    [ "$1" != failed ] || worst=1
}

# certify MODE SCRIPT CONFIG...: prepares and runs each of these configurations that there are.
certify() {
    local mode=$1 script=$2 config code kind log started
    shift 2
    for config; do
        [ -f "$config" ] || continue
        taken[$config]=1
        log=test_tipc/output/$(basename "$(dirname "$config")")_$(basename "$config" .txt)_$mode.log
        started=$SECONDS code=0
        { bash test_tipc/prepare.sh "$config" "$mode" && bash "test_tipc/$script" "$config" "$mode"; } >"$log" 2>&1 || code=$?
        case $code in
            0) kind=successfully ;;
            77) kind=skipped ;;
            *) kind=failed ;;
        esac
        tell $kind $((SECONDS - started)) "$mode" "$config" "$(tail -n 1 "$log")"
    done
}

for model in "${models[@]}"; do
    folder=test_tipc/configs/$model
    certify lite_train_lite_infer test_train_inference_python.sh "$folder"/train_infer_python.txt \
        "$folder"/train_linux_*.txt "$folder"/train_{pact,fpgm,distill}_infer_python.txt
    # Differs from the last in its pictures alone, and so once is enough, with the fastest.
    [ "$model" != Lite ] ||
        certify lite_train_whole_infer test_train_inference_python.sh "$folder"/train_infer_python.txt
    certify whole_infer test_train_inference_python.sh "$folder"/train_infer_python.txt
    certify whole_infer test_ptq_inference_python.sh "$folder"/train_ptq*_infer_python.txt
    certify lite_train_lite_infer test_train_dy2static_python.sh "$folder"/train_dy2static_python.txt
    # Minutes each: of the first model alone, unless models are named.
    if [ "$model" = N2N ] || [ $# -gt 0 ]; then
        certify benchmark_train benchmark_train.sh "$folder"/train_infer_python.txt
    fi
    certify paddle2onnx_infer test_paddle2onnx.sh "$folder"/model_*_paddle2onnx_*.txt
    certify serving_infer test_serving_infer_python.sh "$folder"/model_*_serving_*.txt
    certify cpp_infer test_inference_cpp.sh "$folder"/model_*_infer_cpp_*.txt
    certify lite_infer test_lite_arm_cpu_cpp.sh "$folder"/*_lite_arm_cpu_cpp.txt
    for config in "$folder"/*; do
        [ -n "${taken[$config]-}" ] || tell failed 0 - "$config" "no chain takes it"
    done
done
printf '%s\n' "" "${summary[@]}" "" "$SECONDS seconds, ${#summary[@]} chains"
exit $worst
