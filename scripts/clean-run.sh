#!/bin/bash
# `make clean-run`: undoes everything that `make run` did outside the source tree, and checks that it is gone.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

berth=$PWD/target/release/berth
if pid=$(berth_pid); then
    step "stopping berth up (process $pid)"
    as_root kill -TERM "$pid"
    end=$((SECONDS + 30))
    while [ "$(berth_pid)" = "$pid" ]; do
        [ $SECONDS -lt $end ] || as_root kill -KILL "$pid" 2>/dev/null || true
        sleep 0.1
    done
fi
if [ -e "$state" ] || [ -e "$run" ]; then
    step "removing virtual machines, network, mounts and files"
    [ -x "$berth" ] || { echo "clean-run: $berth is missing; build it with cargo build --release" >&2; exit 1; }
    as_root "$berth" down --purge --state-dir "$state" --run-dir "$run"
    as_root rm -rf "$run"
fi

check processes "$(processes_of "$state/" "$run/")"
check links "$(ip -o link | grep -E ': (berth0|bp[0-9a-f]{8,})' || true)"
check mounts "$(grep -E " ($state|$run)" /proc/self/mountinfo || true)"
check "control groups" "$(find /sys/fs/cgroup -path '*/berth/*' -type d 2>/dev/null || true)"
check "nft tables" "$(as_root nft list tables 2>/dev/null | grep -E 'berth' || true)"
check files "$(ls -d $state $run 2>/dev/null || true)"
[ $left = 0 ] && echo "clean-run: nothing is left"
exit $left
