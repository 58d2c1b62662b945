# Shared by the scripts of the cluster: where it keeps things, its addresses, and its processes.
#
#  host namespace                                    node: namespaces of its own (mounts, network, processes, host name)
#  etcd, kube-apiserver, controller-manager,
#  scheduler      bcl0 10.97.255.1/24 ── bcl-N ────── eth0 10.97.255.(10+N)
#                                                     containerd, kubelet, kube-proxy
#                                                     cni0 10.97.N.1/24 ── pods
#
# Whatever a node makes (mounts, links, rules, processes) ends with its first process. berth's own networks are elsewhere
# (10.98.0.0/16), and its API server listens on loopback: both may run beside the cluster.

cluster=/var/lib/berth-cluster
cluster_run=/run/berth-cluster
bridge=bcl0
gateway=10.97.255.1
pods=10.97.0.0/17
services=10.99.0.0/16
# The first of the service range, by which pods find the API server.
api_service=10.99.0.1
cgroup=berth-cluster
kubeconfig=$cluster/admin.kubeconfig
programs=$PWD/.cache/reference/bin

node_address() { # NUMBER
    echo "10.97.255.$((10 + $1))"
}

# A process by itself, in a session of its own, with its id and start time on record: an id alone may be another program's
# by the time it is used.
start() { # NAME COMMAND…
    local name=$1 pid
    shift
    setsid "$@" >>"$cluster/log/$name.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid $(started "$pid")" >"$cluster_run/$name.pid"
}

started() { # PID: its start time, in ticks since the machine's
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The name in the second field may hold anything.
    set -- ${stat##*) }
    echo "${20}"
}

# The id of a process that was started and still runs.
pid_of() { # NAME
    local pid since
    { read -r pid since <"$cluster_run/$1.pid"; } 2>/dev/null || return 1
    [ "$(started "$pid")" = "$since" ] && echo "$pid"
}

# Asks processes to end, all at once, and ends those that still run after 3 seconds.
stop() { # NAME…
    local name pid end=$((SECONDS + 3))
    for name; do
        if pid=$(pid_of "$name"); then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    for name; do
        while pid=$(pid_of "$name"); do
            [ $SECONDS -lt $end ] || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$cluster_run/$name.pid"
    done
}

# Until a command succeeds; a process of the cluster that ends meanwhile is told with its log.
until_ready() { # SECONDS NAME COMMAND…
    local end=$((SECONDS + $1)) name=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! pid_of "$name" >/dev/null || [ $SECONDS -ge $end ]; then
            echo "cluster: $name is not ready; the end of $cluster/log/$name.log:" >&2
            tail -n 20 "$cluster/log/$name.log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

kube() {
    "$programs/kubectl" --kubeconfig "$kubeconfig" "$@"
}

# In the namespaces of a node.
in_node() { # NUMBER COMMAND…
    local pid
    pid=$(pid_of "node$1") || return 1
    shift
    # The recorded process is the one that made them; its child is in them.
    nsenter --target "$(pgrep -P "$pid" | head -n 1)" --mount --net --pid --uts -- "$@"
}
