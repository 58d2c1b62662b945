#!/bin/bash
# `make bench`: builds the release, measures, prints. An argument names one section: start or memory.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh bench
guest/build.sh .cache/guest.qcow2
cargo build --release --locked -p berth-cli -p berth-bench
exec target/release/berth-bench "$@"
