#!/usr/bin/env bash
# The exported model on Paddle Inference, with the benchmark report and the score on seeded noise.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
needs "$EXPORT/model.pdmodel" 5_export.sh
step "6 Infer"
"$PYTHON" infer.py --model_file="$EXPORT/model.pdmodel" --params_file="$EXPORT/model.pdiparams" \
    --use_gpu=False --enable_mkldnn=True --cpu_threads=2 --batch_size=2 --precision=fp32 \
    --input_file=validation/Sample --noise gauss25 --seed 101 --enable_benchmark=True \
    --save_dir output/demo/inference_img --overwrite
step "Done"
echo "denoised pictures   $PICTURES"
echo "score table         output/demo/scores.json, and output/demo/report/index.html to look at"
echo "exported model      $EXPORT/model.pdmodel, model.pdiparams"
