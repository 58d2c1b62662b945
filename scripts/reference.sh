#!/bin/bash
# Builds programs of the real Kubernetes, from the versions that go.mod in e2e/cluster and e2e/cluster/containerd pins, into .cache/reference/bin. A
# program that is there in this version is left alone.
#
# usage: scripts/reference.sh           etcd, kube-apiserver and kubectl: what the tests compare berth with
#        scripts/reference.sh cluster   these and what else a cluster needs
#        scripts/reference.sh images    all these and a containerd that knows image volumes, which Debian's does not
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kubectl k8s.io/kubernetes/cmd/kube-apiserver)
case ${1:-} in
cluster | images) packages+=(k8s.io/kubernetes/cmd/{kube-controller-manager,kube-scheduler,kube-proxy,kubelet}) ;;
esac
if [ "${1:-}" = images ]; then
    packages+=(github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2})
fi
root=$PWD
out=$root/.cache/reference

# The module that pins a package.
module_of() {
    case $1 in
    github.com/containerd/*) echo e2e/cluster/containerd ;;
    *) echo e2e/cluster ;;
    esac
}

stamp_of() {
    local module
    module=$(module_of "$1")
    (cd "$root" && sha256sum "$module/go.mod" "$module/go.sum" scripts/reference.sh) | sha256sum | cut -d' ' -f1
}

name_of() {
    local name=${1##*/}
    [ "$name" != v3 ] || name=etcd
    echo "$name"
}

missing=()
for package in "${packages[@]}"; do
    [ "$(cat "$out/$(name_of "$package").stamp" 2>/dev/null)" = "$(stamp_of "$package")" ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
    echo "reference: $out is up to date"
    exit 0
fi
# A Go that is older than go.mod asks for fetches the right one by itself, unless it is older than that mechanism (1.21).
if ! have=$(go env GOVERSION 2>/dev/null) || ! [[ $have =~ ^go1\.([0-9]+) ]] || [ "${BASH_REMATCH[1]}" -lt 21 ]; then
    echo "reference: Go 1.21 or newer is missing (https://go.dev/doc/install); found: ${have:-none}" >&2
    exit 1
fi
mkdir -p "$out/bin"
begin=$SECONDS
cd "$root/e2e/cluster"
# As upstream's build, so that the programs say which version they are.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamps+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
done
for package in "${missing[@]}"; do
    name=$(name_of "$package")
    cd "$root/$(module_of "$package")"
    echo "reference: building $name $(go list -f '{{.Module.Version}}' "$package") (minutes, once)"
    CGO_ENABLED=0 go build -ldflags "$stamps" -o "$out/bin/$name" "$package"
    stamp_of "$package" >"$out/$name.stamp"
done
if [ -n "${BERTH_SPARE_DISK:-}" ] && [ "${1:-}" = images ]; then
    # What go keeps to build them again faster is larger than everything else here.
    go clean -cache
fi
echo "reference: built in $((SECONDS - begin)) s"
