#!/bin/bash
# `make bench-cluster`: many virtual machines on the cluster of `make cluster`, in real pods with a fake hypervisor, for the
# machine could not run so many guests. Prints the figures and removes the cluster.
#
# BERTH_BENCH_VMIS   how many (default 100). A node takes 110 pods.
# BERTH_CLUSTER      the kubeconfig of another cluster, with berth or upstream's components installed and the image
#                    localhost/small-guest:1 on its nodes: that one is measured, and left as it was
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
. scripts/cluster/lib.sh

if [ -n "${BERTH_CLUSTER:-}" ]; then
    cargo build --release --locked -p berth-bench
    exec target/release/berth-bench cluster
fi
scripts/setup.sh bench
guest/build.sh .cache/guest.qcow2
step "berth and its image"
cargo build --release --locked -p berth-cli -p berth-bench
scripts/image.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
scripts/cluster-down.sh >/dev/null 2>&1 || true
trap 'scripts/cluster-down.sh' EXIT
scripts/cluster.sh
guest=$(mktemp -d)
python3 scripts/cluster/image.py localhost/small-guest:1 "$guest/guest.tar" /none .cache/guest.qcow2=/disk/guest.qcow2
scripts/cluster/load.sh .cache/image/berth.tar "$guest/guest.tar"
rm -r "$guest"

step "berth, with the fake hypervisor"
target/release/berth manifests --image "localhost/berth:$version" | kube apply -f - >/dev/null
kube -n berth rollout status deployment/berth-controller --timeout=120s
kube -n berth rollout status daemonset/berth-node --timeout=120s
kube apply -f - <<YAML
apiVersion: berth.kubevirt.io/v1
kind: Berth
metadata: {name: berth}
spec:
  configuration:
    developerConfiguration:
      useEmulation: true
      featureGates: [FakeHypervisor]
      # A machine asks for a thousandth of a CPU: as many as wanted fit.
      cpuAllocationRatio: 1000
YAML
step "measuring"
BERTH_CLUSTER=$kubeconfig target/release/berth-bench cluster
