#!/bin/bash
# A node: the first process of its namespaces. Makes its network and its mounts, runs containerd, kubelet and kube-proxy and
# starts them again when they end. Everything that they make ends with it.
#
# usage: scripts/cluster/node.sh NUMBER NAME [IMAGE_VOLUMES]   (by scripts/cluster.sh, in new namespaces)
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/cluster/lib.sh

number=$1 name=$2
# Debian's containerd beside the newer one: with both, both ways of container disks can be seen.
if [ -n "${3:-}" ] && [ "$number" != 0 ]; then PATH=$programs:$PATH; fi
umask 022
address=$(node_address "$number")
files=$cluster/nodes/$name

mount --make-rshared /
mount -t proc proc /proc
# Sockets, and the namespaces of pods.
mount -t tmpfs -o mode=755 node-run /run
mkdir -p /run/netns "$files"/{containerd,kubelet,cni,var-lib-cni,berth} /var/lib/kubelet /var/lib/cni
mount --bind "$files/kubelet" /var/lib/kubelet
mount --bind "$files/var-lib-cni" /var/lib/cni
# What node agents keep is the node's, not the machine's.
[ -e /var/lib/berth ] || { mkdir /var/lib/berth && touch "$cluster/made-var-lib-berth"; }
mount --bind "$files/berth" /var/lib/berth
hostname "$name"

ip link set lo up
# The host's side moves it in.
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
sysctl -qw net.ipv4.ip_forward=1
# Pods of one node reach each other by a service's address, too.
sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true

cat >"$files/cni/10-pods.conflist" <<JSON
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isDefaultGateway": true,
      "hairpinMode": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.97.$number.0/24"}]]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "loopback"}
  ]
}
JSON
# Without CAP_SYS_RESOURCE (a machine that is a sandbox itself) nobody may ask to be spared when memory is short.
restrict=true
if (echo -1 >/proc/self/oom_score_adj) 2>/dev/null; then restrict=false; fi
cat >"$files/containerd.toml" <<TOML
version = 2
root = "$files/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = $restrict
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$files/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
TOML
# Nobody answers names here: pods that ask for the cluster's get a resolver that is not there, and fail at once.
echo "nameserver $gateway" >"$files/resolv.conf"
cat >"$files/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $cluster/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $cluster/pki/$name.crt
tlsPrivateKeyFile: $cluster/pki/$name.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup/$name
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
# Pods that are guaranteed whole CPUs have them for themselves; what is reserved is a CPU that nobody gets so.
cpuManagerPolicy: static
kubeReserved: {cpu: 100m}
failCgroupV1: false
featureGates: {ImageVolume: true}
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [$gateway]
resolvConf: $files/resolv.conf
# A machine for tests is small, and its disk is full of other things.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
healthzBindAddress: 127.0.0.1
syncFrequency: 10s
fileCheckFrequency: 5s
volumeStatsAggPeriod: 10s
nodeStatusUpdateFrequency: 5s
registerWithTaints: []
YAML
cat >"$files/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: $pods
hostnameOverride: $name
clientConnection: {kubeconfig: $cluster/pki/proxy.kubeconfig}
# The limit is the machine's, not the node's.
conntrack: {maxPerCore: 0}
YAML
# Outside the cluster pods have the node's address.
nft -f - <<NFT
table ip berth-cluster {
    chain out {
        type nat hook postrouting priority srcnat;
        ip saddr 10.97.$number.0/24 ip daddr != { 10.97.0.0/16, $services } masquerade
    }
}
NFT

keep() { # NAME COMMAND…: runs it, again and again
    local program=$1
    shift
    while :; do
        "$@" >>"$cluster/log/$name-$program.log" 2>&1 </dev/null || true
        echo "$program ended, and is started again"
        sleep 1
    done
}
keep containerd containerd --config "$files/containerd.toml" &
until ctr --address /run/containerd/containerd.sock version >/dev/null 2>&1; do sleep 0.1; done
for image in "$cluster"/images/*.tar; do
    ctr --address /run/containerd/containerd.sock --namespace k8s.io images import "$image" >/dev/null
done
keep kubelet "$programs/kubelet" --config "$files/kubelet.yaml" --kubeconfig "$cluster/pki/$name.kubeconfig" \
    --hostname-override "$name" --node-ip "$address" --v 1 &
keep kube-proxy "$programs/kube-proxy" --config "$files/proxy.yaml" &
# Children of containers whose parents are gone become ours.
while :; do wait || true; sleep 1; done
