#!/bin/bash
# `make cluster-down`: ends the cluster, removes all that it made, and checks that nothing is left.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
. scripts/cluster/lib.sh

if [ "$(id -u)" != 0 ]; then
    exec sudo "$0" "$@"
fi

step "ending the nodes and what runs on them"
for record in "$cluster_run"/node*.pid; do
    [ -e "$record" ] || continue
    name=$(basename "$record" .pid)
    # With the first process of its namespaces everything in them ends.
    if pid=$(pid_of "$name"); then
        for inside in $(pgrep -P "$pid"); do kill -KILL "$inside" 2>/dev/null || true; done
    fi
    stop "$name"
done
step "ending kube-scheduler, kube-controller-manager, kube-apiserver, etcd"
stop kube-scheduler kube-controller-manager kube-apiserver etcd

step "removing network, control groups and files"
for link in $(ip -o link show | awk -F': ' '{print $2}' | grep -oE '^bcl(-[0-9]+|0)' || true); do
    ip link delete "$link" 2>/dev/null || true
done
nft delete table ip berth-cluster 2>/dev/null || true
if [ -e "$cluster/ip_forward" ]; then
    sysctl -qw net.ipv4.ip_forward="$(cat "$cluster/ip_forward")"
fi
groups() { find /sys/fs/cgroup -type d -path "*/$cgroup*" 2>/dev/null | sort -r; }
end=$((SECONDS + 10))
while [ -n "$(groups)" ] && [ $SECONDS -lt $end ]; do
    # What is ending is still in its group for a moment.
    groups | while read -r group; do rmdir "$group" 2>/dev/null || true; done
    [ -z "$(groups)" ] || sleep 0.2
done
[ ! -e "$cluster/made-var-lib-berth" ] || rmdir /var/lib/berth 2>/dev/null || true
rm -rf "$cluster" "$cluster_run"

# By their command lines: a shell that knows the kubeconfig is none of ours.
check processes "$(pgrep -af "$cluster/|scripts/cluster/node.sh" || true)"
check links "$(ip -o link | grep -E ': bcl(-|0)' || true)"
check mounts "$(grep -E " ($cluster|$cluster_run)" /proc/self/mountinfo || true)"
check "control groups" "$(groups)"
check "nft tables" "$(nft list tables 2>/dev/null | grep berth-cluster || true)"
check files "$(ls -d $cluster $cluster_run 2>/dev/null || true)"
[ $left = 0 ] && echo "cluster-down: nothing is left"
exit $left
