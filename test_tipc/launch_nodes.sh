#!/usr/bin/env bash
# Starts a training on several "machines" that are all this one, and waits for them.
#
#   bash test_tipc/launch_nodes.sh PYTHON NODES PROCESSES_PER_NODE LOG_DIR SCRIPT ARGUMENTS...
#
# Ends with 0 only if every node does; the logs of node R are in LOG_DIR/node_R.
set -euo pipefail
if (($# < 5)); then
    echo "launch_nodes.sh: error: usage: launch_nodes.sh PYTHON NODES PROCESSES_PER_NODE LOG_DIR SCRIPT ARGUMENTS..." >&2
    exit 2
fi
python=$1 nodes=$2 processes=$3 logs=$4
shift 4
# A port of our own: two chains may run at once.
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
pids=()
stop() { kill "${pids[@]}" 2>/dev/null; }
trap stop INT TERM
for ((rank = 0; rank < nodes; rank++)); do
    "$python" -m paddle.distributed.launch --master "127.0.0.1:$port" --nnodes "$nodes" --rank "$rank" \
        --nproc_per_node "$processes" --log_dir "$logs/node_$rank" "$@" &
    pids+=($!)
done
code=0
# The first node that fails ends the others, which would wait for it.
for ((left = nodes; left > 0; left--)); do
    wait -n || { code=$? && stop && break; }
done
wait
exit "$code"
