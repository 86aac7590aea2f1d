#!/usr/bin/env bash
# Noise2Noise Lite from nothing: pairs of 32x32 pixels, a training of some minutes, the score on pairs held out.
#     bash scripts/lite.sh                    patches of the pictures that ship
#     bash scripts/lite.sh FOLDER             of your own: 50,000 pairs, and 1,000 of other images to score on
#     MINUTES=2 NOISE=poisson30 bash scripts/lite.sh FOLDER
folder=${1:+$(realpath "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PAIRS=${PAIRS:-data/lite}
RUNS=${RUNS:-results}
COUNT=${COUNT:-50000}
NOISE=${NOISE:-gauss30}
grep -qw avx512_bf16 /proc/cpuinfo 2>/dev/null && PRECISION=bf16 || PRECISION=fp32

step "1 Pairs: two corruptions of each patch, $NOISE"
if [ -n "$folder" ]; then
    "$PYTHON" dataset_tool.py --input_dir "$folder" --save_dir "$PAIRS" --pairs "$COUNT" --noise "$NOISE" --overwrite
else
    "$PYTHON" scripts/sample_images.py train "$DATA/raw"
    "$PYTHON" dataset_tool.py --input_dir "$DATA/raw" --val_dir validation/Sample --save_dir "$PAIRS" --pairs "$COUNT" \
        --noise "$NOISE" --overwrite
fi
step "2 Train: Noise2Noise on a light U-Net, ${MINUTES:-8} minutes, $PRECISION"
"$PYTHON" -u train.py --preset lite --data_dir "$PAIRS/train.npz" --val_dirs "$PAIRS/val.npz" \
    --max_minutes "${MINUTES:-8}" --precision "$PRECISION" --save_model_path "$RUNS" --log_name lite
newest=$(printf '%s\n' "$RUNS"/lite/*/ | sort | tail -n 1)
step "3 Score: the pairs that were held out"
"$PYTHON" val.py --model_path "${newest}best_model.pdparams" --val_dirs "$PAIRS/val.npz"
echo "weights    ${newest}best_model.pdparams"
