#!/usr/bin/env bash
# The short certification chain (test_tipc/): trains, scores, exports and infers in many ways; every row is checked.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "7 Certify: training and inference, row by row (a minute or two)"
CONFIG=test_tipc/configs/N2N/train_infer_python.txt MODE=lite_train_lite_infer
STATUS=test_tipc/output/N2N/$MODE/results_python.log
export PYTHON
bash test_tipc/prepare.sh "$CONFIG" $MODE
code=0
# Of each row its status and its log's name, as they come.
bash test_tipc/test_train_inference_python.sh "$CONFIG" $MODE |
    sed -nuE 's|.* Run (\w+( \([^)]*\))?) with .* - \S*/(\S+)\.log ! .*|\1  \3|p' || code=$?
echo "status, and the logs beside it: $STATUS"
exit $code
