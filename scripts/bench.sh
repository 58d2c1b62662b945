#!/bin/bash
# `make bench`: builds the release, measures, prints. An argument names one section: start, memory, import, machines
# (BERTH_BENCH_VMIS bounds how many), apiserver (up to 10,000 objects), or apiserver-large (up to 100,000, as without an
# argument; it takes several minutes more).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh bench
guest/build.sh .cache/guest.qcow2
scripts/reference.sh
cargo build --release --locked -p berth-cli -p berth-bench
exec target/release/berth-bench "$@"
