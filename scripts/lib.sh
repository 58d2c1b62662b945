# Shared by the scripts of the make targets: where `make run` keeps things, and how it waits.

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

# berth_pid: the process of the `berth up` that run.sh started; fails where it does not run. The number alone says nothing:
# by now it may be another program's.
berth_pid() {
    local pid program arguments
    pid=$(cat "$pidfile" 2>/dev/null) && [[ $pid =~ ^[1-9][0-9]*$ ]] || return 1
    program=$(as_root readlink "/proc/$pid/exe" 2>/dev/null) || return 1
    program=${program% (deleted)}
    arguments=$(as_root cat "/proc/$pid/cmdline" 2>/dev/null | tr '\0' ' ')
    [ "${program##*/}" = berth ] && [[ $arguments = *" up "*"--state-dir $state "* ]] || return 1
    echo "$pid"
}

# processes_of DIR…: number and command of every process that has one of the directories in its command line or environment,
# or mounted in a mount namespace of its own. The last is how a virtual machine's processes are known.
processes_of() {
    as_root bash -s -- "$@" <<'SCAN'
        own=$(readlink /proc/self/ns/mnt)
        for process in /proc/[0-9]*; do
            command=$(tr '\0' ' ' <"$process/cmdline") || continue
            [[ $command != *"bash -s -- "* ]] || continue
            # Whoever looks at a machine has its kubeconfig in the environment, and is nothing of it.
            about="$command $(tr '\0' '\n' <"$process/environ" | grep -v '^KUBECONFIG=')"
            [ "$(readlink "$process/ns/mnt")" = "$own" ] || about+=$(cat "$process/mountinfo")
            for directory; do
                if [[ $about = *"$directory"* ]]; then
                    echo "${process#/proc/} ${command:0:160}"
                    break
                fi
            done
        done 2>/dev/null
SCAN
}

running() {
    berth_pid >/dev/null && kubectl_quiet get --raw /readyz
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

# What is left after cleaning up is told; `left` is the exit status.
left=0
check() { # WHAT, what is left of it
    if [ -n "$2" ]; then
        printf 'left behind: %s:\n%s\n' "$1" "$2" >&2
        left=1
    fi
}
