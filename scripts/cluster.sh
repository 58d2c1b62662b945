#!/bin/bash
# `make cluster`: a real Kubernetes on this machine, for tests and to try: etcd, kube-apiserver, controller-manager and
# scheduler, and a node with containerd, kubelet and kube-proxy. What it needs is installed or built first.
#
# usage: scripts/cluster.sh
#   NODES           how many nodes (default 1)
#   IMAGE_VOLUMES   1: every node but the first has a containerd that knows image volumes, which Debian's does not
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
. scripts/cluster/lib.sh
. scripts/cluster/pki.sh

if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=NODES,IMAGE_VOLUMES,PATH,GOPROXY,GOFLAGS "$0" "$@"
fi
nodes=${NODES:-1}
begin=$SECONDS

step "installing what is missing"
scripts/setup.sh cluster
step "the programs of Kubernetes"
if [ -n "${IMAGE_VOLUMES:-}" ]; then scripts/reference.sh images; else scripts/reference.sh cluster; fi

step "certificates and images (in $cluster)"
umask 077
mkdir -p "$cluster"/{pki,etcd,log,images,nodes} "$cluster_run"
# Pods' users pass through.
chmod 711 "$cluster" "$cluster/nodes"
make_pki
if ! [ -e "$cluster/images/pause.tar" ]; then
    gcc -O2 -static -s -o "$cluster/images/pause" scripts/cluster/pause.c
    python3 scripts/cluster/image.py localhost/pause:1 "$cluster/images/pause.tar" /pause "$cluster/images/pause=/pause"
    applets=()
    for applet in sh cat echo ls sleep wget nc ip ping httpd hostname mkdir; do
        applets+=("->busybox=/bin/$applet")
    done
    python3 scripts/cluster/image.py localhost/busybox:1 "$cluster/images/busybox.tar" /bin/sh \
        "$(command -v busybox)=/bin/busybox" "${applets[@]}"
    rm "$cluster/images/pause"
fi

step "the network of the nodes ($bridge, $gateway)"
if ! ip link show "$bridge" >/dev/null 2>&1; then
    ip link add "$bridge" type bridge
    ip address add "$gateway/24" dev "$bridge"
    ip link set "$bridge" up
fi
# To the world outside, and from node to node.
[ -e "$cluster/ip_forward" ] || cat /proc/sys/net/ipv4/ip_forward >"$cluster/ip_forward"
sysctl -qw net.ipv4.ip_forward=1
nft -f - <<NFT
table ip berth-cluster
delete table ip berth-cluster
table ip berth-cluster {
    chain out {
        type nat hook postrouting priority srcnat;
        ip saddr 10.97.0.0/16 oifname != "$bridge" masquerade
    }
}
NFT

step "etcd, kube-apiserver, controller-manager, scheduler"
if ! pid_of etcd >/dev/null; then
    peer=https://127.0.0.1:12380
    start etcd "$programs/etcd" --data-dir "$cluster/etcd" --log-level warn \
        --listen-client-urls https://127.0.0.1:12379 --advertise-client-urls https://127.0.0.1:12379 \
        --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster default=$peer \
        --client-cert-auth --trusted-ca-file "$pki/ca.crt" --cert-file "$pki/etcd.crt" --key-file "$pki/etcd.key" \
        --peer-client-cert-auth --peer-trusted-ca-file "$pki/ca.crt" --peer-cert-file "$pki/etcd.crt" \
        --peer-key-file "$pki/etcd.key"
fi
if ! pid_of kube-apiserver >/dev/null; then
    start kube-apiserver "$programs/kube-apiserver" --bind-address "$gateway" --advertise-address "$gateway" \
        --secure-port 6443 --allow-privileged --authorization-mode Node,RBAC \
        --feature-gates ImageVolume=true --enable-admission-plugins NodeRestriction --service-cluster-ip-range "$services" \
        --etcd-servers https://127.0.0.1:12379 --etcd-cafile "$pki/ca.crt" --etcd-certfile "$pki/etcd.crt" \
        --etcd-keyfile "$pki/etcd.key" --client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" \
        --tls-private-key-file "$pki/apiserver.key" --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$pki/tokens.pub" --service-account-signing-key-file "$pki/tokens.key" \
        --kubelet-certificate-authority "$pki/ca.crt" --kubelet-client-certificate "$pki/kubelet-client.crt" \
        --kubelet-client-key "$pki/kubelet-client.key" --kubelet-preferred-address-types InternalIP \
        --enable-aggregator-routing --proxy-client-cert-file "$pki/front-client.crt" \
        --proxy-client-key-file "$pki/front-client.key" --requestheader-client-ca-file "$pki/front.crt" \
        --requestheader-allowed-names front-proxy --requestheader-username-headers X-Remote-User \
        --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra-
fi
until_ready 120 kube-apiserver kube get --raw /readyz
for program in controller-manager scheduler; do
    pid_of kube-$program >/dev/null && continue
    arguments=()
    if [ $program = controller-manager ]; then
        arguments=(--use-service-account-credentials --service-account-private-key-file "$pki/tokens.key"
            --root-ca-file "$pki/ca.crt" --cluster-signing-cert-file "$pki/ca.crt"
            --cluster-signing-key-file "$pki/ca.key" --allocate-node-cidrs=false --node-monitor-grace-period 20s)
    fi
    config=$pki/$program.kubeconfig
    start kube-$program "$programs/kube-$program" --kubeconfig "$config" --authentication-kubeconfig "$config" \
        --authorization-kubeconfig "$config" --bind-address 127.0.0.1 --leader-elect=false "${arguments[@]}"
done

for number in $(seq 0 $((nodes - 1))); do
    name=node$number
    pid_of "$name" >/dev/null && continue
    step "$name ($(node_address "$number"))"
    make_cert "$name" ca "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$(node_address "$number")"
    make_kubeconfig "$pki/$name.kubeconfig" "$name"
    # On the old hierarchy every controller has a tree of its own; a new group of cpuset is empty.
    for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ -e "$tree/cgroup.procs" ] || continue
        mkdir -p "$tree/$cgroup/$name"
        for file in cpuset.cpus cpuset.mems; do
            [ -e "$tree/$file" ] || continue
            cat "$tree/$file" >"$tree/$cgroup/$file"
            cat "$tree/$file" >"$tree/$cgroup/$name/$file"
        done
    done
    start "$name" unshare --mount --net --pid --uts --ipc --fork --kill-child=KILL -- \
        scripts/cluster/node.sh "$number" "$name" "${IMAGE_VOLUMES:-}"
    inside=
    while [ -z "$inside" ]; do
        inside=$(pgrep -P "$(pid_of "$name")" | head -n 1) || sleep 0.05
    done
    ip link add "bcl-$number" type veth peer name eth0 netns "$inside"
    ip link set "bcl-$number" master "$bridge" up
    ip route replace "10.97.$number.0/24" via "$(node_address "$number")"
done
# kube-proxy of the first node serves the host as well.
ip route replace "$services" via "$(node_address 0)"

step "waiting for the nodes"
for number in $(seq 0 $((nodes - 1))); do
    until_ready 120 "node$number" kube wait --for condition=Ready --timeout 1s "node/node$number"
done
until_ready 60 kube-controller-manager kube get serviceaccount default
kube get nodes -o wide
cat <<TEXT

The cluster runs, $((SECONDS - begin)) s after the start.
  look:     export KUBECONFIG=$kubeconfig; kubectl get nodes
  images:   scripts/cluster/load.sh IMAGE.tar, in place of a registry
  logs:     $cluster/log
  remove:   make cluster-down
TEXT
