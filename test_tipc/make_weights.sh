#!/usr/bin/env bash
# Made test_tipc/weights, small networks that finished weights are certified with, and the stored results of all models:
# some minutes of training for each. To be run again when a network changes (its weights do not fit any more then).
#
#   bash test_tipc/make_weights.sh              all of them, and new results
#   bash test_tipc/make_weights.sh Lite         this one
#   TRAIN= bash test_tipc/make_weights.sh N2N   new results alone, of the weights that are there
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
declare -A VALUE=([python]=python3)
interpreter
export PYTHON
models=("$@")
[ $# -gt 0 ] || models=(N2N Noise2Noise Lite MonteCarlo)

# train MODEL FLAGS...: into test_tipc/weights/MODEL.pdparams.
train() {
    local model=$1 runs
    local -a found
    shift
    runs=$(mktemp -d)
    "$PYTHON" train.py --method=noise2noise --n_feature=12 --batchsize=4 --optimizer=muon --lr=1e-3 --lr_schedule=cosine \
        --warmup_steps=50 --ema=0.99 --augment --n_snapshot=100000 --log_iters=50 --save_model_path="$runs" --log_name=run "$@"
    found=("$runs"/run/*/best_model.pdparams)
    mkdir -p test_tipc/weights
    cp "${found[0]}" "test_tipc/weights/$model.pdparams"
    rm -r "$runs"
}

# certify SCRIPT CONFIG: the whole_infer rows of a configuration. Its last row compares with what is stored, and is red as
# long as nothing, or something else, is stored; after any other red row there is nothing to record.
certify() {
    local code=0 folder
    folder=test_tipc/output/$(sed -n 's/^model_name://p' "$2")/whole_infer
    bash "test_tipc/$1" "$2" whole_infer || code=$?
    [ $code -le 1 ] || die "$2: ended with code $code, nothing is recorded"
    # A chain that ended early has no last row.
    grep -q 'test_tipc/compare_results.py' "$folder"/results_python.log || die "$2: its last row is missing"
    if grep 'Run failed' "$folder"/results_python.log | grep -v 'test_tipc/compare_results.py' >&2; then
        die "$2: these rows failed, nothing is recorded"
    fi
}

# record LOGS
record() {
    "$PYTHON" test_tipc/compare_results.py --record --gt_file="test_tipc/results/*.txt" --log_file="$1"
}

for model in "${models[@]}"; do
    config=test_tipc/configs/$model/train_infer_python.txt
    [ -f "$config" ] || die "$config: no such configuration"
    bash test_tipc/prepare.sh "$config" whole_infer
    if [ -n "${TRAIN-1}" ]; then
        pictures=(--data_dir=test_tipc/data/lite --val_dirs=validation --noisetype=gauss25 --patchsize=96)
        case $model in
            Noise2Noise) train "$model" --arch=unet_n2n --max_steps=800 "${pictures[@]}" ;;
            Lite) train "$model" --arch=unet_lite --max_steps=1000 "${pictures[@]}" ;;
            MonteCarlo)
                train "$model" --arch=unet_n2n --max_steps=300 --patchsize=96 --clip_grad=1 \
                    --data_dir=test_tipc/data/renders --val_dirs=test_tipc/inputs/renders
                ;;
        esac
    fi
    certify test_train_inference_python.sh "$config"
    logs="test_tipc/output/$model/whole_infer/python_infer_*.log"
    [ "$model" != MonteCarlo ] || logs="test_tipc/output/$model/whole_infer/model_*_eval*.log"
    record "$logs"
    for config in test_tipc/configs/"$model"/train_ptq*_infer_python.txt; do
        [ -f "$config" ] || continue
        bash test_tipc/prepare.sh "$config" whole_infer
        certify test_ptq_inference_python.sh "$config"
        record "test_tipc/output/$(sed -n 's/^model_name://p' "$config")/whole_infer/python_infer_*.log"
    done
done
