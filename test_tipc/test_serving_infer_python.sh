#!/usr/bin/env bash
# Starts the HTTP service, sends it pictures, and compares what comes back with the network itself.
#
#   bash test_tipc/prepare.sh test_tipc/configs/N2N/model_linux_cpu_normal_normal_serving_python_linux_cpu.txt 'serving_infer'
#   bash test_tipc/test_serving_infer_python.sh test_tipc/configs/N2N/model_linux_cpu_normal_normal_serving_python_linux_cpu.txt 'serving_infer'
# shellcheck source-path=SCRIPTDIR source=common_func.sh
source "$(dirname "${BASH_SOURCE[0]}")/common_func.sh"

# The official lines; what is null here belongs to Paddle Serving, which needs its own model format.
read_config() {
    header 1 serving_params
    model_and_python
    field convert 4 trans_model
    field weights 5
    field serving_dir 10 serving_dir
    field service 11 web_service
    field device 12
    field client 14 pipline
    field images 15
    accuracy_fields reference tolerance jobs
    reject_unused
    ! given "${VALUE[convert]}" || die "$CONFIG: trans_model: tools/serve.py takes the weights as they are"
    ! given "${VALUE[serving_dir]}" || die "$CONFIG: serving_dir: tools/serve.py runs where it is"
}

# start_service DEVICE: in the background; URL is its address, empty if it ended before it had one.
start_service() {
    local second
    python_command "${VALUE[service]}"
    add weights
    add device "$1"
    SERVER=("${ARGS[@]}") SERVER_LOG=$OUTPUT/server_$1.log URL=''
    : >"$SERVER_LOG"
    "${SERVER[@]}" >"$SERVER_LOG" 2>&1 &
    SERVING=$!
    for ((second = 0; second < 600; second++)); do
        URL=$(sed -n 's|^\(http://[^ ]*\)$|\1|p' "$SERVER_LOG" | head -n 1)
        if [ -n "$URL" ] || ! kill -0 "$SERVING" 2>/dev/null; then break; fi
        sleep 0.2
    done
}

# stop_service: its row is green only if it had an address, lived until now, and ends as it should.
stop_service() {
    local code=0
    kill "$SERVING" 2>/dev/null || code=1
    wait "$SERVING" || code=$?
    SERVING=''
    cat "$SERVER_LOG"
    [ -n "$URL" ] || code=1
    [ "$code" -eq 0 ] || echo "exit code $code, address '$URL'" | tee -a "$SERVER_LOG"
    verdict $code "$SERVER_LOG" "${SERVER[@]}"
}

client_row() {
    local log=$OUTPUT/server_infer_$1_jobs_$2.log
    python_command "${VALUE[client]}"
    add images
    ARGS+=("--url=${URL:-none}" "--save_dir=$(results_of "$log")" "--jobs=$2")
    infer_row "$log" '' fp32
}

open_config "${1-}" "${2-}" serving_infer
read_config
start_chain results_serving.log
reference_row "${VALUE[weights]}" "$OUTPUT/model"
NO_REFERENCE=$BROKEN
split device && devices=("${LIST[@]}")
split accuracy_jobs && jobs=("${LIST[@]}")
for device in "${devices[@]}"; do
    BROKEN=$NO_REFERENCE
    OBSTACLE=$(without aiohttp)
    if [ "$device" = gpu ]; then OBSTACLE=${OBSTACLE:-$(no_gpus 0)}; fi
    if [ -z "$OBSTACLE" ]; then
        start_service "$device"
        [ -n "$URL" ] || BROKEN="server_$device has no address"
    fi
    for number in "${jobs[@]}"; do client_row "$device" "$number"; done
    ARGS=("$PYTHON" test_tipc/check_row.py service --url "${URL:-none}" --images "${VALUE[images]}" --times "${#jobs[@]}")
    side_step "$OUTPUT/server_${device}_health.log"
    if [ -z "$OBSTACLE" ]; then stop_service; fi
done
finish
