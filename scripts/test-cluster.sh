#!/bin/bash
# `make test-cluster`: the end-to-end tests on a real Kubernetes, which it makes, with berth installed by the documented
# commands; in the end everything is removed. Ends with the counts.
#
# BERTH_TEST_FILTER runs only the stories whose name holds it. KEEP=1 leaves the cluster with berth on it.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
. scripts/cluster/lib.sh

fail() {
    echo "test-cluster: $*" >&2
    exit 1
}

if ! go env GOVERSION >/dev/null 2>&1; then
    echo "SKIPPED: test-cluster: Go is missing, and the cluster is built with it (https://go.dev/doc/install)"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "SKIPPED: test-cluster: not root, and nodes are namespaces"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
logs=$(mktemp -d)
[ -n "${KEEP:-}" ] || trap 'rm -rf "$logs"; scripts/cluster-down.sh >/dev/null 2>&1' EXIT
export BERTH_SKIP_LOG=$logs/skipped
: >"$BERTH_SKIP_LOG"

step "installing what is missing"
scripts/setup.sh test || fail "set-up failed"
guest/build.sh .cache/guest.qcow2 || fail "the guest image was not built"
guest/debian.sh .cache/debian.qcow2 || fail "the Debian guest was not built"
step "berth and its image"
cargo build --bin berth --locked || fail "berth does not build"
cargo test -p berth-e2e --locked --test cluster --no-run || fail "the tests do not build"
BERTH_BINARY=target/debug/berth scripts/image.sh localhost/berth:test || fail "the image was not made"
python3 scripts/cluster/image.py localhost/small-guest:1 "$logs/guest.tar" /none .cache/guest.qcow2=/disk/guest.qcow2
# A cluster that is there may have been used for anything.
scripts/cluster-down.sh >/dev/null 2>&1
NODES=${NODES:-2} IMAGE_VOLUMES=1 scripts/cluster.sh || fail "the cluster does not start"
scripts/cluster/load.sh .cache/image/berth.tar "$logs/guest.tar" || fail "the images are not loaded"

step "berth manifests | kubectl apply -f -"
begin=$SECONDS
target/debug/berth manifests --image localhost/berth:test | kube apply -f - || fail "the manifests are refused"
kube -n berth rollout status deployment/berth-controller --timeout=120s &&
    kube -n berth rollout status daemonset/berth-node --timeout=120s || {
    kube -n berth get pods -o yaml
    fail "berth does not start"
}
echo "berth is installed, after $((SECONDS - begin)) s"
# These nodes may have no KVM.
kube apply -f examples/settings.yaml || fail "the settings are refused"

step "stories"
status=0
BERTH_CLUSTER=$kubeconfig cargo test -p berth-e2e --locked --no-fail-fast --test cluster -- --test-threads=2 \
    ${BERTH_TEST_FILTER:-} 2>&1 | tee "$logs/cluster"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

if [ -z "${KEEP:-}" ]; then
    step "berth uninstall"
    before=$(kube get vmi --all-namespaces -o name)
    [ -z "$before" ] || { echo "left: $before" >&2; status=1; }
    target/debug/berth uninstall --kubeconfig "$kubeconfig" || status=1
    left=$(kube api-resources -o name | grep kubevirt; kube get clusterroles,clusterrolebindings,priorityclasses,namespaces -o name | grep -E 'berth|kubevirt')
    if [ -n "$left" ]; then
        printf 'left behind on the cluster:\n%s\n' "$left" >&2
        status=1
    else
        echo "nothing is left on the cluster"
    fi
    scripts/cluster-down.sh || status=1
fi

sort -u "$BERTH_SKIP_LOG"
passed=$(awk '/^test result:/ {sum += $4} END {print sum + 0}' "$logs/cluster")
failed=$(awk '/^test result:/ {sum += $6} END {print sum + 0}' "$logs/cluster")
skipped=$(sort -u "$BERTH_SKIP_LOG" | wc -l)
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
exit $status
