#!/usr/bin/env bash
# The static graph for Paddle Inference.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs "$MODEL" 2_train.sh
step "5 Export"
"$PYTHON" export_model.py --model_path "$MODEL" --save_dir "$EXPORT" --overwrite
