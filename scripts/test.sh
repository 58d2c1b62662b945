#!/bin/bash
# `make test`: set-up, format, lints, unit tests, end-to-end tests. Ends with the counts; a skipped test names its reason.
#
# BERTH_TEST_FILTER runs only the end-to-end tests whose name holds it.
set -uo pipefail
cd "$(dirname "$0")/.."

step() {
    printf '\n==> %s\n' "$*"
}
fail() {
    echo "test: $*" >&2
    exit 1
}

step "installing what is missing"
scripts/setup.sh test || fail "set-up failed"
if [ "$(id -u)" != 0 ]; then
    echo "test: not root: what needs network namespaces or guests is skipped"
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export BERTH_SKIP_LOG=$logs/skipped
: >"$BERTH_SKIP_LOG"

step "format"
cargo fmt --all --check || fail "cargo fmt changes files"
step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings || fail "clippy found something"

step "the small guest"
guest/build.sh .cache/guest.qcow2 || fail "the guest image was not built"

step "unit tests"
status=0
cargo test --workspace --exclude berth-e2e --locked --no-fail-fast 2>&1 | tee "$logs/unit"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

step "end-to-end tests"
cargo build --bin berth --locked || fail "berth does not build"
# Two machines at a time: each guest is emulated and takes a core while it boots.
cargo test -p berth-e2e --locked --no-fail-fast --lib --test e2e -- --test-threads=2 ${BERTH_TEST_FILTER:-} 2>&1 | tee "$logs/e2e"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

step "the real API server, to compare with"
# Without Go the comparison is skipped, and says so.
scripts/reference.sh || true

step "conformance"
cargo test -p berth-e2e --locked --test conformance 2>&1 | tee "$logs/conformance"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

step "what is left behind"
left=$(pgrep -af "berth (up|launcher|pod-init)|[/]berth (up|launcher)" || true)
if [ -n "$left" ]; then
    echo "$left"
    # A berth that `make run` started is not ours.
    echo "$left" | grep -v -- '--state-dir /var/lib/berth ' | grep -q -- '--state-dir' && status=1
fi

sort -u "$BERTH_SKIP_LOG"
passed=$(awk '/^test result:/ {sum += $4} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
failed=$(awk '/^test result:/ {sum += $6} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
ignored=$(awk '/^test result:/ {sum += $8} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
skipped=$(sort -u "$BERTH_SKIP_LOG" | wc -l)
# A skipped test returned early and was counted as passed by the harness.
echo "$((passed - skipped)) passed, $failed failed, $((skipped + ignored)) skipped"
exit $status
