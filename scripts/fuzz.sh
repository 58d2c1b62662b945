#!/bin/bash
# `make fuzz`: each fuzz target for FUZZ_SECONDS (default 30). A crash ends it with the input that made it.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh fuzz
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz"
    cargo install --quiet --locked cargo-fuzz
fi
# libFuzzer's instrumentation is unstable; the toolchain is asked for by name so that the default one stays stable.
rustup toolchain list | grep -q '^nightly' || { echo "fuzz: installing the nightly toolchain"; rustup toolchain install nightly --profile minimal; }

cd fuzz
for target in $(cargo +nightly fuzz list); do
    echo "==> $target for ${FUZZ_SECONDS:-30} s"
    mkdir -p "corpus/$target"
    cargo +nightly fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-30}" -max_len=65536 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0
done
echo "fuzz: no crash"
