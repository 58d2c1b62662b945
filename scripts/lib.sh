# Shared by run.sh and clean-run.sh: where `make run` keeps things, and how it waits.

state=/var/lib/berth
run=/run/berth
pidfile=$run/berth.pid
log=$run/berth.log

step() {
    printf '\n==> %s\n' "$*"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# The same in place of this shell, so that its process id is the command's.
exec_as_root() {
    if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo "$@"; fi
}

# The kubeconfig is root's alone.
kctl() {
    as_root env KUBECONFIG="$state/admin.kubeconfig" "$(command -v kubectl)" "$@"
}

kubectl_quiet() {
    kctl "$@" >/dev/null 2>&1
}

running() {
    [ -e "$pidfile" ] && as_root kill -0 "$(cat "$pidfile")" 2>/dev/null && kubectl_quiet get --raw /readyz
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    local limit=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "run: $what: not within $limit s; the log of berth up is $log" >&2
            as_root tail -n 20 "$log" >&2 || true
            exit 1
        fi
        sleep 0.2
    done
}

# follow_phase NAME SECONDS: a progress line with the phase, until the VMI runs.
follow_phase() {
    local name=$1 end=$((SECONDS + $2)) phase='' last='' message
    while :; do
        phase=$(kctl get vmi "$name" -o 'jsonpath={.status.phase}' 2>/dev/null || true)
        if [ "$phase" != "$last" ]; then
            printf '    %s: %s\n' "$name" "${phase:-Pending}"
            last=$phase
        fi
        case $phase in
        Running) return ;;
        Failed | Succeeded) break ;;
        esac
        [ $SECONDS -lt $end ] || break
        sleep 0.2
    done
    message=$(kctl get vmi "$name" -o 'jsonpath={.status.reason} {.status.conditions[*].message}' 2>/dev/null || true)
    echo "run: $name did not get to Running (it is ${phase:-Pending}): $message" >&2
    kctl get events >&2 || true
    exit 1
}

# Copies standard input until a text has passed.
until_prompt() {
    local want=$1 seen='' char
    while [[ $seen != *"$want"* ]]; do
        if ! IFS= read -r -d '' -N 1 char; then
            echo "run: the console ended before the prompt" >&2
            return 1
        fi
        printf '%s' "$char"
        [ ${#seen} -lt 400 ] || seen=${seen: -200}
        seen+=$char
    done
}
