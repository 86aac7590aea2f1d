#!/usr/bin/env bash
# A short training from noisy images alone; MINUTES=15 bash scripts/2_train.sh for a longer one.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs "$DATA/train" 1_prepare_data.sh
step "2 Train: Neighbor2Neighbor, Gaussian noise of 25, ${MINUTES:-1.2} minutes"
"$PYTHON" -u train.py --data_dir "$DATA/train" --val_dirs validation --noisetype gauss25 \
    --save_model_path "$(dirname "$RUN")" --log_name "$(basename "$RUN")" \
    --max_minutes "${MINUTES:-1.2}" --log_iters 100 \
    --n_feature 24 --batchsize 2 --patchsize 128 --optimizer muon --lr 1e-3 --lr_schedule cosine --warmup_steps 50 \
    --reg_start 0.5 --ema 0.99 --augment
mkdir -p "$(dirname "$MODEL")"
# The newest run's folder: names are times.
newest=$(printf '%s\n' "$RUN"/*/ | sort | tail -n 1)
cp "$newest/best_model.pdparams" "$MODEL"
