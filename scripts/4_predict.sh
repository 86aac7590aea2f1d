#!/usr/bin/env bash
# The noisy pictures of demo/, denoised.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs "$MODEL" 2_train.sh
step "4 Predict"
"$PYTHON" predict.py --image_path "demo/*_noise.png" --model_path "$MODEL" --save_dir "$PICTURES" --overwrite
