#!/bin/bash
# Builds the real API server that the tests compare berth with: etcd, kube-apiserver and kubectl, from the versions that
# e2e/cluster/go.mod pins, into .cache/reference/bin. Does nothing when they are there in these versions.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$PWD/.cache/reference
stamp=$(sha256sum e2e/cluster/go.mod e2e/cluster/go.sum scripts/reference.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
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
cd e2e/cluster
# As upstream's build, so that the programs say which version they are.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamps+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
done
for package in go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kubectl k8s.io/kubernetes/cmd/kube-apiserver; do
    name=$(basename "$package")
    [ "$name" != v3 ] || name=etcd
    echo "reference: building $name $(go list -f '{{.Module.Version}}' "$package") (minutes, once)"
    CGO_ENABLED=0 go build -ldflags "$stamps" -o "$out/bin/$name" "$package"
done
echo "$stamp" >"$out/stamp"
echo "reference: built in $((SECONDS - begin)) s"
