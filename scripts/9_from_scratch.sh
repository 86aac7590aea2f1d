#!/usr/bin/env bash
# The framework in NumPy (from_scratch/README.md): makes pairs of noisy images, trains a denoiser on them and denoises
# a picture; some ten minutes on two cores. `make demo` leaves it out; it needs no Paddle.
#
#   bash scripts/9_from_scratch.sh                 pictures that come with scikit-image, validated on validation/Sample
#   bash scripts/9_from_scratch.sh IMAGES          a folder of images, such as the 60,000 of CIFAR-10; 1,000 are held out
#   EPOCHS=1 bash scripts/9_from_scratch.sh        a shorter training
images=${1:+$(realpath "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PAIRS=data/from_scratch
RUN=results/from_scratch

if ! "$PYTHON" -c 'import matplotlib, numpy, PIL, skimage, tqdm' 2>/dev/null; then
    step "A virtual environment of its own: .venv_from_scratch"
    [ -x .venv_from_scratch/bin/python ] || "$PYTHON" -m venv .venv_from_scratch
    PYTHON=.venv_from_scratch/bin/python
    "$PYTHON" -m pip install --quiet --disable-pip-version-check matplotlib numpy pillow scikit-image tqdm
fi

step "1 Pairs of noisy images"
if [ -n "$images" ]; then
    "$PYTHON" from_scratch/make_pairs.py --images "$images" --out "$PAIRS" --overwrite
else
    "$PYTHON" scripts/sample_images.py train "$PAIRS/images"
    "$PYTHON" from_scratch/make_pairs.py --images "$PAIRS/images" --val_images validation/Sample --out "$PAIRS" --overwrite
fi
step "2 Train: Noise2Noise, L2, Adam"
"$PYTHON" from_scratch/train.py --train "$PAIRS/train.npz" --val "$PAIRS/val.npz" --out "$RUN" \
    --epochs "${EPOCHS:-2}" --overwrite
step "3 Denoise a picture"
"$PYTHON" from_scratch/denoise.py --image demo/chelsea_noise.png --weights "$RUN/weights.npz" \
    --out "$RUN/chelsea.png" --overwrite
step "Done"
echo "weights     $RUN/weights.npz"
echo "pictures    $RUN/pictures.png (noisy, denoised, clean), $RUN/chelsea.png, $RUN/loss.png"
