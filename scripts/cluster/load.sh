#!/bin/bash
# Puts an image (an OCI layout in a tar file) into every node of the cluster, in place of a registry.
#
# usage: scripts/cluster/load.sh IMAGE.tar…
set -euo pipefail
archives=()
for archive; do archives+=("$(realpath "$archive")"); done
cd "$(dirname "$0")/../.."
. scripts/cluster/lib.sh

for record in "$cluster_run"/node*.pid; do
    name=$(basename "$record" .pid)
    for archive in "${archives[@]}"; do
        in_node "${name#node}" ctr --address /run/containerd/containerd.sock --namespace k8s.io images import "$archive"
    done
done
