#!/bin/bash
# `make test`: set-up, format, lints, unit tests, end-to-end tests. Ends with the counts; a skipped test names its reason.
#
# BERTH_TEST_FILTER runs only the end-to-end tests whose name holds it.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

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
# All that the tests make lies below one directory, and all that they start has its name in its environment, its command
# line or its mounts: that is how what they leave behind is found. Pods' users must be able to pass through it.
scratch=$(mktemp -d /tmp/bt.XXXXXX)
chmod 711 "$scratch"
trap 'rm -rf "$logs" "$scratch"' EXIT
export BERTH_SKIP_LOG=$logs/skipped
: >"$BERTH_SKIP_LOG"

step "format"
cargo fmt --all --check || fail "cargo fmt changes files"
step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings || fail "clippy found something"

# They are no part of the workspace, and would rot unseen. With the workspace's versions.
step "the fuzz targets"
cp Cargo.lock fuzz/Cargo.lock
cargo check --manifest-path fuzz/Cargo.toml --target-dir target/fuzz || fail "the fuzz targets do not build"
[ -z "${BERTH_SPARE_DISK:-}" ] || rm -rf target/fuzz

step "the small guest"
guest/build.sh .cache/guest.qcow2 || fail "the guest image was not built"
if [ "$(id -u)" = 0 ]; then
    step "the whole Debian"
    guest/debian.sh .cache/debian.qcow2 || fail "the Debian guest was not built"
fi

# What is there before, that it can be told from what is left.
netns_before=$(ls /run/netns 2>/dev/null)
links_before=$(ip -o link | awk -F': ' '{print $2}')
cgroups() { find /sys/fs/cgroup -path '*/berth/*' -type d 2>/dev/null | sort; }
cgroups_before=$(cgroups)
export TMPDIR=$scratch

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
conformance() { cargo test -p berth-e2e --locked --test conformance 2>&1 | tee "$logs/conformance"; return "${PIPESTATUS[0]}"; }
# The real server tells of several faults in the order of a hash map, and seconds may end between two writes on one side: a
# difference counts when it is there twice.
conformance || { echo "conformance: once more"; conformance; } || status=1

step "what is left behind"
unset TMPDIR
new() { comm -13 <(sort <<<"$1") <(sort <<<"$2"); }
left_behind() {
    processes_of "$scratch" | sed 's/^/process /'
    grep -F " $scratch/" /proc/self/mountinfo | sed 's/^/mount /'
    new "$netns_before" "$(ls /run/netns 2>/dev/null)" | grep '^berth-' | sed 's/^/network namespace /'
    new "$links_before" "$(ip -o link | awk -F': ' '{print $2}')" | grep -E '^(berth|bp)' | sed 's/^/link /'
    new "$cgroups_before" "$(cgroups)" | sed '/^$/d; s/^/control group /'
}
# What was told to end may take a moment.
end=$((SECONDS + 10))
while left=$(left_behind) && [ -n "$left" ] && [ $SECONDS -lt $end ]; do
    sleep 0.5
done
if [ -n "$left" ]; then
    printf 'left behind:\n%s\n' "$left" >&2
    status=1
else
    echo "nothing"
fi

sort -u "$BERTH_SKIP_LOG"
passed=$(awk '/^test result:/ {sum += $4} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
failed=$(awk '/^test result:/ {sum += $6} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
ignored=$(awk '/^test result:/ {sum += $8} END {print sum + 0}' "$logs/unit" "$logs/e2e" "$logs/conformance")
skipped=$(sort -u "$BERTH_SKIP_LOG" | wc -l)
# A skipped test returned early and was counted as passed by the harness.
echo "$((passed - skipped)) passed, $failed failed, $((skipped + ignored)) skipped"
exit $status
