#!/usr/bin/env bash
# Noise2Noise Lite from nothing (docs/lite.md): pairs of 32x32 pixels, a training, the score on pairs held out; ten
# minutes on two cores. `make demo` leaves it out.
#
#   bash scripts/8_lite.sh                 patches of pictures that come with scikit-image, scored on validation/Sample
#   bash scripts/8_lite.sh IMAGES          a folder of images, such as the 60,000 of CIFAR-10; 1,000 are held out
#   MINUTES=2 NOISE=poisson30 bash scripts/8_lite.sh IMAGES
folder=${1:+$(realpath "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PAIRS=${PAIRS:-data/lite}
RUNS=${RUNS:-results}
COUNT=${COUNT:-50000}
VAL_COUNT=${VAL_COUNT:-1000}
NOISE=${NOISE:-gauss30}
if ! "$PYTHON" -c 'import paddle' 2>/dev/null; then
    step "A virtual environment of its own: .venv"
    make --silent .venv/runtime
    PYTHON=.venv/bin/python
fi
PRECISION=$("$PYTHON" -c 'from denoising.inference import devices; print(devices.fastest_precision())')

step "1 Pairs: two corruptions of each patch, $NOISE"
if [ -n "$folder" ]; then
    images=(--input_dir "$folder")
else
    "$PYTHON" scripts/sample_images.py train "$DATA/raw"
    images=(--input_dir "$DATA/raw" --val_dir validation/Sample)
fi
"$PYTHON" dataset_tool.py "${images[@]}" --save_dir "$PAIRS" --pairs "$COUNT" --val_pairs "$VAL_COUNT" --noise "$NOISE" \
    --overwrite
step "2 Train: Noise2Noise on a light U-Net, ${MINUTES:-8} minutes, $PRECISION"
"$PYTHON" -u train.py --preset lite --data_dir "$PAIRS/train.npz" --val_dirs "$PAIRS/val.npz" \
    --max_minutes "${MINUTES:-8}" --precision "$PRECISION" --save_model_path "$RUNS" --log_name lite
newest=$(printf '%s\n' "$RUNS"/lite/*/ | sort | tail -n 1)
step "3 Score: the pairs that were held out"
"$PYTHON" val.py --model_path "${newest}best_model.pdparams" --val_dirs "$PAIRS/val.npz"
echo "weights    ${newest}best_model.pdparams"
