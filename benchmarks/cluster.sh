#!/usr/bin/env bash
# Runs a cluster in network namespaces joined by a bridge, each link held to a rate, and prints the
# tables of `coordinator-cli bench` measured in it. Needs root. Takes everything down whatever
# happens.
#
#   benchmarks/cluster.sh [--stages N] [--model M] [--gpu NAME] [--rate RATE] [BENCH OPTION ...]
#
# Stages are emulated; their time is that of the GPU named, the network's is real.
set -euo pipefail
cd "$(dirname "$0")/.."

num_stages=3 model=shape:llama-2-13b gpu=rtx-3060-12gb rate=1gbit
while [[ $# -gt 0 ]]; do
	case "$1" in
	--stages) num_stages=$2 ;;
	--model) model=$2 ;;
	--gpu) gpu=$2 ;;
	--rate) rate=$2 ;;
	-h | --help)
		sed -n '2,9s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	*) break ;;
	esac
	shift 2
done

if [[ "$(id -u)" != 0 ]]; then
	echo "cluster.sh needs root, to make network namespaces" >&2
	exit 1
fi
for tool in ip tc; do
	command -v "$tool" >/dev/null || {
		echo "cluster.sh needs $tool: apt-get install iproute2" >&2
		exit 1
	}
done

python=.venv/bin/python
prefix="stagecoach-$$"
switch="$prefix-switch"
network=10.77.0
port=50051
log=$(mktemp)
pids=()

take_down() {
	local code=$?
	trap - EXIT INT TERM
	[[ ${#pids[@]} == 0 ]] || kill "${pids[@]}" 2>/dev/null || true
	wait
	ip netns list | awk '{print $1}' | grep -- "^$prefix-" | xargs -r -n 1 ip netns delete
	[[ $code == 0 ]] || tail -n 20 "$log" >&2
	rm -f "$log"
	exit "$code"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What leaves a device is shaped, so both ends of a link are. A small burst, or a message of 10 kB
# would pass at full speed.
shape() {
	tc -n "$1" qdisc add dev "$2" root handle 1: htb default 1
	tc -n "$1" class add dev "$2" parent 1: classid 1:1 \
		htb rate "$rate" burst 4k cburst 4k quantum 1514
}

add_node() {
	local node="$prefix-$1"
	ip netns add "$node"
	ip link add eth0 netns "$node" type veth peer name "port$1" netns "$switch"
	ip -n "$switch" link set "port$1" master bridge0 up
	ip -n "$node" address add "$network.$((10 + $1))/24" dev eth0
	ip -n "$node" link set eth0 up
	ip -n "$node" link set lo up
	shape "$node" eth0
	shape "$switch" "port$1"
}

run_on() {
	local node="$prefix-$1"
	shift
	ip netns exec "$node" "$@"
}

# In the background: takes the place of its subshell, so that `$!` is the server itself.
serve_on() {
	local node="$prefix-$1"
	shift
	exec ip netns exec "$node" "$@" 2>>"$log"
}

ip netns add "$switch"
ip -n "$switch" link add bridge0 type bridge
ip -n "$switch" link set bridge0 up
for node in $(seq 0 "$num_stages"); do
	add_node "$node"
done

split='
import sys
from stagecoach.model_files import open_model
from stagecoach.roofline.layer_split import split_layers
print(*split_layers(open_model(sys.argv[1]).config, int(sys.argv[2])))
'
node=0
stages=()
for layers in $("$python" -c "$split" "$model" "$num_stages"); do
	node=$((node + 1))
	address="$network.$((10 + node)):$port"
	serve_on "$node" "$python" -m stage_server --model "$model" --layers "$layers" \
		--listen "$address" --insecure-bind --engine emulated --emulate "$gpu" &
	pids+=($!)
	stages+=(--stage "$address")
done
serve_on 0 "$python" -m coordinator.cli serve --model "$model" "${stages[@]}" &
pids+=($!)

run_on 0 "$python" -c '
from stagecoach.client import Client
with Client("127.0.0.1:50050") as client:
    client.wait_until_ready(120)
'
echo "$num_stages emulated $gpu, $model, links of $rate in network namespaces"
run_on 0 "$python" -m coordinator.cli bench --coordinator 127.0.0.1:50050 "$@"
