#!/usr/bin/env bash
# PSNR and SSIM by the published protocol, and a page to look at.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs "$MODEL" 2_train.sh
step "3 Validate"
"$PYTHON" val.py --model_path "$MODEL" --val_dirs validation --json output/demo/scores.json \
    --report output/demo/report --overwrite
