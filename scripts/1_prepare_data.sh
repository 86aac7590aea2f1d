#!/usr/bin/env bash
# Training images from those in scikit-image's wheel (public domain and CC0), through dataset_tool.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "1 Prepare data: clean images, filtered and cut to 256 pixels"
"$PYTHON" scripts/sample_images.py train "$DATA/raw"
"$PYTHON" dataset_tool.py --input_dir "$DATA/raw" --save_dir "$DATA/train" --crop 256
