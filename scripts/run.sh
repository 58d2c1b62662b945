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
exec 3< <(exec_as_root timeout 90 "$berth" console small-guest --kubeconfig "$state/admin.kubeconfig" </dev/null)
console=$!
until_prompt "login: " <&3
as_root kill "$console" 2>/dev/null || true
exec 3<&-

sudo=
[ "$(id -u)" = 0 ] || sudo='sudo '
cat <<EOF


The virtual machine runs and goes on running.
  look:     ${sudo}kubectl --kubeconfig $state/admin.kubeconfig get vmi
  get in:   ${sudo}target/release/berth console small-guest --kubeconfig $state/admin.kubeconfig
            (user root, no password; leave with ^])
  stop:     ${sudo}kubectl --kubeconfig $state/admin.kubeconfig delete vmi small-guest
  remove:   make clean-run
EOF
