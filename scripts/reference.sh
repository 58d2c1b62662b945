#!/bin/bash
# Builds the real API server that the tests compare berth with: etcd, kube-apiserver and kubectl, from the versions that
# e2e/cluster/go.mod pins, into .cache/reference/bin. Does nothing when they are there in these versions.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$PWD/.cache/reference
stamp=$(sha256sum e2e/cluster/go.mod e2e/cluster/go.sum | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    echo "reference: $out is up to date"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "reference: go is missing; install Go 1.26 or newer (https://go.dev/doc/install)" >&2
    exit 1
fi
mkdir -p "$out/bin"
cd e2e/cluster
for package in go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kubectl k8s.io/kubernetes/cmd/kube-apiserver; do
    name=$(basename "$package")
    [ "$name" != v3 ] || name=etcd
    echo "reference: building $name $(go list -f '{{.Module.Version}}' "$package") (minutes, once)"
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out/bin/$name" "$package"
done
echo "$stamp" >"$out/stamp"
