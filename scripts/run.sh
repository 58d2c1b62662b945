#!/bin/bash
# `make run`: from nothing to a virtual machine with an address and a login prompt. Says each step.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

step "installing what is missing"
scripts/setup.sh run
step "building berth"
cargo build --release --locked --bin berth
step "building a small guest image"
guest/build.sh .cache/guest.qcow2

berth=$PWD/target/release/berth
if running; then
    step "berth up already runs (process $(cat "$pidfile"))"
else
    step "starting berth up (log: $log)"
    as_root mkdir -p "$state" "$run"
    as_root sh -c "exec setsid '$berth' up --state-dir '$state' --run-dir '$run' >>'$log' 2>&1 </dev/null & echo \$! >'$pidfile'"
    wait_for 60 "berth up is ready" kubectl_quiet get --raw /readyz
fi

step "importing the guest as container disk berth/small-guest:latest"
as_root "$berth" image build --root "$state/images" -t berth/small-guest:latest .cache/guest.qcow2

step "kubectl apply -f examples/vmi.yaml"
kctl apply -f examples/vmi.yaml
follow_phase small-guest 180
kctl get vmi
address=$(kctl get vmi small-guest -o 'jsonpath={.status.interfaces[0].ipAddress}')
step "pinging the guest at $address"
wait_for 60 "$address answers" ping -c 1 -W 1 "$address"
ping -c 3 "$address"
step "the guest's console, up to its prompt"
as_root timeout 60 "$berth" console small-guest --kubeconfig "$state/admin.kubeconfig" </dev/null 2>/dev/null | until_prompt "login: "

cat <<EOF


The virtual machine runs and goes on running.
  look:     export KUBECONFIG=$state/admin.kubeconfig; kubectl get vmi
  get in:   target/release/berth console small-guest        (user root, no password; leave with ^])
  stop:     kubectl delete vmi small-guest
  remove:   make clean-run
EOF
