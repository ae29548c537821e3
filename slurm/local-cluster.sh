#!/usr/bin/env bash
# Start a real Slurm on this Debian machine, from Debian's packages and as plain processes. Use it to try a
# sweep without a cluster, and for CI. It never touches a Slurm that it did not set up. Tested on Debian 12.
#
#   local-cluster.sh start [--nodes 2] [--cpus 4] [--gpus 2] [--memory 4000] [--max-array-size 1001] [--no-accounting]
#   local-cluster.sh stop [--wipe]            without --wipe, the job history stays
#   local-cluster.sh status
#   local-cluster.sh daemon kill|start slurmctld|slurmdbd|slurmd-node1|...     to see the effect of a fault
#   local-cluster.sh with COMMAND...     run a command with a cluster, or without one if none can be set up
#
# --cpus, --gpus and --memory (MB) are per node and need not exist. The GPUs are device files without CUDA.
# Jobs run in the partition `lab`; a job in `urgent` preempts them. `start` also restarts daemons that died.
# Exit status: 0 done, 1 failed, 2 refused, 3 not running.

# shellcheck disable=SC1091,SC2016
set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin
# The caller's shell may belong to another cluster or job; the commands below must use this cluster.
while read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(SLURM|SBATCH|SALLOC|SQUEUE|SINFO|SCANCEL|SACCT)')
export SLURM_CONF=/etc/slurm/slurm.conf

ETC=/etc/slurm STATE=/var/lib/densevit-slurm RUN=/run/densevit-slurm LOGS=/var/log/slurm
CONFIGS=("$ETC"/{slurm,slurmdbd,gres,densevit-daemons}.conf)
MARK='# densevit local cluster: written by slurm/local-cluster.sh'
POLICY=/usr/sbin/policy-rc.d BOOT=$(</proc/sys/kernel/random/boot_id)
nodes=2 cpus=4 gpus=2 memory=4000 max_array_size=1001 accounting=yes # set by options
started=() policy_is_ours=no interrupted=no

say() { echo "local-cluster: $1"; }
die() { say "$1" >&2; exit "${2:-1}"; }
fail() { tail -vn 8 "$LOGS/$1.log" >&2 || true; die "$1 $2"; } # NAME REASON
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
await() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    until "${@:2}"; do ((SECONDS < end)) || return 1; sleep 0.1 || true; done
}

identity() { # PID: print a value that no later process with this pid has; nothing for a zombie, which may stay long
    sed -E '/\) [ZX] [^)]*$/d; s/.*\) (\S+ ){19}(\S+) .*/\2@'"$BOOT/" "/proc/$1/stat" 2>/dev/null | grep .
}
records() { cat "$STATE/pids" 2>/dev/null || true; }
record() { # NAME PIDFILE: the daemon creates the file before it writes into it
    local pid id
    pid=$(cat "$2" 2>/dev/null) && [[ $pid =~ ^[1-9][0-9]*$ ]] && id=$(identity "$pid") &&
        echo "$1 $pid $id" >>"$STATE/pids"
}
forget() { [[ ! -e $STATE/pids ]] || sed -i "/^$1 /d" "$STATE/pids"; }
pid_of() { # NAME: print its recorded pid if the same process is still alive
    local pid id
    read -r pid id < <(records | sed -n "s/^$1 //p") && [[ $(identity "$pid") == "$id" ]] && echo "$pid"
}
is_up() { pid_of "$1" >/dev/null; }
is_down() { ! is_up "$1"; }
# Each daemon, and every process that it starts, has this script's hosts file mounted.
of_ours() {
    { grep -lsE 'densevit-slurm/hosts(//deleted)? /etc/hosts ' /proc/[0-9]*/mountinfo || true; } | cut -d/ -f3
}
clear_away() { # kill what dead daemons left behind: a child that hangs, a process that left its job
    local pid pids
    mapfile -t pids < <(of_ours)
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do await 15 gone "$pid" || say "process $pid does not end" >&2; done
}
gone() { ! identity "$1" >/dev/null; }
free_port() { # NODE: a child that a killed daemon had just forked may hang and keep the daemon's port
    local pid
    for pid in $(of_ours); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) == slurmd ]] || continue
        tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "-N $1 *$" || continue
        kill -KILL "$pid" 2>/dev/null || true
    done
    await 15 port_is_free "$((17000 + ${1#node}))" || say "port $((17000 + ${1#node})) stays in use" >&2
}
port_is_free() { # PORT: no process listens on it (state 0A)
    ! awk -v port=":$(printf %04X "$1")" '$2 ~ port "$" && $4 == "0A" {found = 1} END {exit !found}' /proc/net/tcp
}
running() { local name; records | while read -r name _; do is_down "$name" || echo "$name"; done; }
daemons() { # in the order of their dependencies
    echo munged
    [[ $accounting == no ]] || printf '%s\n' mariadbd slurmdbd
    echo slurmctld
    seq -f 'slurmd-node%.0f' "$nodes"
}

answers() { # NAME
    case $1 in
    munged) munge -n | unmunge ;;
    mariadbd) [[ -S $RUN/mysql.sock ]] ;;
    slurmdbd) timeout 5 sacctmgr -n list cluster ;;
    # sacct works only after the controller has registered its cluster.
    slurmctld) timeout 5 scontrol ping && { is_down slurmdbd || timeout 5 sacctmgr -n list cluster | grep .; } ;;
    slurmd-*) is_down slurmctld || timeout 5 sinfo -hp lab -n "${1#slurmd-}" -o %T |
        grep -xE 'idle|mixed|allocated|completing|draining|drained' ;;
    esac &>/dev/null
}
settled() { [[ $interrupted == no ]] || exit 130; is_down "$1" || answers "$1"; }
ready() { { await 60 settled "$1" && is_up "$1"; } || fail "$1" "does not get ready"; }
launch() { # NAME
    local host=localhost file=$RUN/$1.pid command
    case $1 in
    munged)
        file=/run/munge/munged.pid
        install -d -o munge -g munge -m 755 /run/munge
        command=(setpriv --reuid=munge --regid=munge --init-groups munged) ;;
    mariadbd)
        rm -f "$RUN/mysql.sock"
        # --no-defaults: the settings in /etc are for another database.
        command=(sh -c '"$@" &' sh mariadbd --no-defaults --user=slurm --datadir="$STATE/mysql" --pid-file="$file"
            --init-file="$STATE/grants.sql" --socket="$RUN/mysql.sock" --bind-address=127.0.0.1 --port=13306
            --skip-name-resolve --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900) ;;
    slurmdbd) command=(slurmdbd) ;;
    slurmctld) command=(slurmctld -f "${CONFIGS[3]}") ;;
    slurmd-*)
        host=${1#slurmd-}
        # A node that an earlier fault drained would stay drained.
        timeout 5 scontrol update nodename="$host" state=resume &>/dev/null || true
        free_port "$host"
        command=(slurmd -f "${CONFIGS[3]}" -N "$host") ;;
    esac
    rm -f "$file"
    forget "$1"
    started+=("$1")
    # A node has its own host name, which resolves here and in its jobs only. So rank 0 is found by name as on a
    # cluster, daemons can bind to loopback alone, and the machine's own name need not resolve.
    # 9 is the lock; a daemon that inherited it would hold it for its whole life.
    { (cd / && exec unshare --uts --mount --propagation slave sh -c \
        'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec setsid "$@"' \
        sh "$STATE/hosts" "$host" "${command[@]}" >>"$LOGS/$1.log" 2>&1 </dev/null 9>&-) &&
        await 20 record "$1" "$file"; } || fail "$1" "does not start"
}
settle() { local name; for name in $(daemons); do is_down "$name" || ready "$name"; done; }
bring_up() {
    local name
    for name in $(daemons); do
        if is_down "$name" && { [[ $name != munged ]] || ! answers munged; }; then
            launch "$name"
            # The nodes may start in parallel.
            [[ $name == slurmd-* ]] || ready "$name"
        fi
    done
    for name in "${started[@]}"; do ready "$name"; done
    ((${#started[@]} == 0)) || settle
}
end() { # NAME
    is_down "$1" || { kill -TERM "$(pid_of "$1")"; await 15 is_down "$1"; } ||
        { kill -KILL "$(pid_of "$1")"; await 15 is_down "$1"; } || { say "$1 does not end" >&2; return 0; }
    forget "$1"
}
on_exit() {
    local status=$? name
    [[ $policy_is_ours == no ]] || rm -f "$POLICY"
    ((status == 0 || ${#started[@]} == 0)) || for name in $(printf '%s\n' "${started[@]}" | tac); do end "$name"; done
}
lock() {
    ((EUID == 0)) || die "only root can do this" 2
    trap on_exit EXIT
    trap 'interrupted=yes' INT TERM HUP # do not exit here: a daemon may not be recorded yet
    exec 9>/run/densevit-slurm.lock
    flock -w 600 9 || die "another call has not finished"
}

foreign() { # print configurations and daemons of another cluster
    grep -LxF "$MARK" "${CONFIGS[@]}" 2>/dev/null || true
    grep -lxE 'slurm(ctl|db)?d' /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        # A daemon in a container belongs to another machine.
        [[ $(readlink "/proc/$pid/ns/pid") == "$(readlink /proc/$$/ns/pid)" ]] || continue
        gone "$pid" || of_ours | grep -x "$pid" >/dev/null || echo "process $pid"
    done
}
install_packages() {
    local installed log package packages=(munge slurmctld slurmd slurm-client)
    [[ $accounting == no ]] || packages+=(slurmdbd mariadb-server-core mariadb-client-core)
    installed=$(dpkg-query -W -f '${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -cx installed) || true
    ((installed != ${#packages[@]})) || return 0
    type -P apt-get >/dev/null || die "needs Debian's apt-get to install ${packages[*]}" 2
    say "installing ${packages[*]}"
    # Otherwise the packages start their own daemons.
    [[ -e $POLICY ]] || { policy_is_ours=yes; install -m 755 /dev/stdin "$POLICY" <<<$'#!/bin/sh\nexit 101'; }
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=120)
    local install=("${get[@]}" install --no-install-recommends "${packages[@]}")
    log=$({ "${install[@]}" || { "${get[@]}" update && "${install[@]}"; }; } 2>&1 9>&-) ||
        { tail -n 8 <<<"$log" >&2; die "the packages could not be installed"; }
    # At the next boot, an init system would find the configuration and start the daemons a second time.
    for package in slurmctld slurmd slurmdbd; do update-rc.d "$package" disable &>/dev/null || true; done
}
write_database() (
    umask 077
    if [[ ! -e $STATE/grants.sql ]]; then # written last: an interrupted set-up is not taken for a database
        rm -rf "$STATE/mysql" && install -d -o slurm -g slurm "$STATE/mysql"
        mariadb-install-db --no-defaults --user=slurm --datadir="$STATE/mysql" --skip-test-db \
            --auth-root-authentication-method=socket >"$LOGS/mariadbd.log" 2>&1 || fail mariadbd "gets no database"
    fi
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    printf '%s;\n' "CREATE OR REPLACE USER slurm@127.0.0.1 IDENTIFIED BY '$password'" \
        'GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1' >"$STATE/grants.sql"
    printf '%s\n' "$MARK" AuthType=auth/munge SlurmUser=slurm DbdHost=localhost DbdAddr=127.0.0.1 \
        LogFile="$LOGS/slurmdbd.log" PidFile="$RUN/slurmdbd.pid" CommunicationParameters=NoInAddrAny \
        StorageType=accounting_storage/mysql StorageHost=127.0.0.1 StoragePort=13306 StorageLoc=slurm_acct_db \
        StorageUser=slurm StoragePass="$password" >"$ETC/slurmdbd.conf"
    chown slurm:slurm "$STATE/grants.sql" "$ETC/slurmdbd.conf"
)
write_cluster() {
    local i slurm gres=("$MARK")
    for ((i = 0; i < gpus; i++)); do
        # slurmd counts only devices, so this is another /dev/null.
        [[ -e $STATE/gpu/nvidia$i ]] || mknod "$STATE/gpu/nvidia$i" c 1 3
        gres+=("Name=gpu File=$STATE/gpu/nvidia$i")
    done
    slurm=("$MARK"
        ClusterName=lab "SlurmctldHost=localhost(127.0.0.1)" SlurmUser=slurm SlurmdUser=root
        StateSaveLocation="$STATE/slurmctld" SlurmdSpoolDir="$STATE/spool/%n"
        SlurmctldPidFile="$RUN/slurmctld.pid" SlurmdPidFile="$RUN/slurmd-%n.pid"
        SlurmctldLogFile="$LOGS/slurmctld.log" SlurmdLogFile="$LOGS/slurmd-%n.log"
        ProctrackType=proctrack/linuxproc TaskPlugin=task/none MpiDefault=none MailProg=/bin/true
        # The nodes may be larger than the machine.
        SlurmdParameters=config_overrides GresTypes=gpu
        # Otherwise a job that requests no memory would get that of a whole node.
        SelectType=select/cons_tres SelectTypeParameters=CR_Core_Memory
        DefMemPerCPU="$((memory / cpus < 500 ? memory / cpus : 500))"
        # A requeued job waits for the lifetime of a credential (at least 5 s), then for the scheduler.
        AuthType=auth/munge AuthInfo=cred_expire=5
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2"
        JobRequeue=1 ReturnToService=2 KillWait=30 SlurmdTimeout=30 BatchStartTimeout=30 MinJobAge=300
        MaxArraySize="$max_array_size" MaxJobCount="$((max_array_size + 10000))"
        # When its grace time begins, a job gets the signal of its --signal option, else SIGTERM.
        PreemptType=preempt/partition_prio PreemptMode=REQUEUE SlurmctldParameters=preempt_send_user_signal
        "PartitionName=lab Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE"
        "PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE"
        "NodeName=DEFAULT CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus State=UNKNOWN")
    [[ $accounting == no ]] || slurm+=(AccountingStorageType=accounting_storage/slurmdbd
        AccountingStorageHost=127.0.0.1 JobAcctGatherType=jobacct_gather/linux JobAcctGatherFrequency=5)
    for ((i = 1; i <= nodes; i++)); do
        slurm+=("NodeName=node$i NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((17000 + i))")
    done
    printf '%s\n' "${slurm[@]}" >"$ETC/slurm.conf"
    printf '%s\n' "${gres[@]}" >"$ETC/gres.conf"
    # For the daemons only: a command would bind to the address of the machine's own name.
    printf '%s\n' "$MARK" "include $ETC/slurm.conf" CommunicationParameters=NoInAddrAny,NoCtldInAddrAny >"${CONFIGS[3]}"
}
prepare() {
    local name
    install -d "$STATE" "$STATE/gpu" "$STATE/spool"
    install -d -o slurm -g slurm "$RUN" "$LOGS" "$STATE/slurmctld"
    for name in $(daemons); do
        [[ -e $LOGS/$name.log ]] || install -o slurm -g slurm -m 640 /dev/null "$LOGS/$name.log"
        [[ $name != slurmd-* ]] || install -d "$STATE/spool/${name#slurmd-}"
    done
    { echo 127.0.0.1 localhost; seq -f '127.0.0.1 node%.0f' "$nodes"; cat /etc/hosts; } >"$STATE/hosts"
    [[ $accounting == no ]] || write_database
    write_cluster
    options >"$STATE/options"
}
options() {
    echo "nodes=$nodes cpus=$cpus gpus=$gpus memory=$memory max_array_size=$max_array_size accounting=$accounting"
}
load_options() { [[ ! -e $STATE/options ]] || source "$STATE/options"; }
need_running() { load_options; [[ -n $(running) ]] || { say "not running"; exit 3; }; }

start() {
    local was
    while (($#)); do
        [[ $1 != --no-accounting ]] || { accounting=no; shift; continue; }
        [[ $1 =~ ^--(nodes|cpus|gpus|memory|max-array-size)$ && ${2-} =~ ^(0|[1-9][0-9]{0,6})$ ]] || usage
        printf -v "$(tr - _ <<<"${1#--}")" %s "$2"
        shift 2
    done
    ((nodes > 0 && nodes <= 100 && gpus <= 100 && cpus > 0 && cpus <= memory && max_array_size <= 4000001)) || usage
    lock
    [[ -z $(foreign) ]] || die "nothing was changed, as this is another cluster's: $(foreign | xargs)" 2
    was=$(load_options; options)
    [[ -z $(running) || $was == "$(options)" ]] || die "it runs with $was: stop it first" 2
    unshare --uts --mount true 2>/dev/null || die "namespaces are needed; a container has them if it is privileged" 2
    install_packages
    [[ -n $(running) ]] || { clear_away; prepare; }
    bring_up
    ((${#started[@]})) || { say "runs already"; return; }
    say "runs: $nodes nodes of $cpus CPUs, $gpus GPUs and $memory MB; accounting: $accounting"
}
no_jobs() { # cancel again at each call, because a cancelled job may requeue itself
    local jobs
    timeout 5 squeue -ht PD,CF,R,S -o %F | sort -u | timeout 5 xargs -r scancel -Q
    jobs=$(timeout 5 squeue -h) && [[ -z $jobs ]]
}
stop() {
    local name
    [[ $# == 0 || $* == --wipe ]] || usage
    lock
    load_options
    # A daemon stays recorded until this script has ended it, even if something else killed it.
    if [[ $(records) == *"@$BOOT"* ]]; then
        # A job outlives the daemon of its node. Without the controller it would run again at the next start.
        (bring_up) || true
        { [[ -z $(foreign) ]] && is_up slurmctld && await 20 no_jobs 2>/dev/null; } || say "some jobs may go on" >&2
        for name in $(daemons | tac); do end "$name"; done
        say "stopped"
    else
        say "nothing runs"
    fi
    clear_away
    (($#)) || return 0
    grep -lxF "$MARK" "${CONFIGS[@]}" 2>/dev/null | xargs -r rm || true
    for name in $(daemons); do rm -f "$LOGS/$name.log"; done
    rm -rf "$STATE" "$RUN"
}
status() {
    local name pid state down=0
    need_running
    for name in $(daemons); do
        state=up
        pid=$(pid_of "$name") || { [[ $name == munged ]] && answers munged; } || { state=down; down=1; }
        printf '%-13s %8s  %s\n' "$name" "${pid:--}" "$state"
    done
    timeout 10 sinfo || down=1
    exit $down
}
daemon() { # kill|start NAME
    [[ $# == 2 && $1 == @(kill|start) ]] || usage
    lock
    need_running
    [[ " $(daemons | xargs) " == *" $2 "* ]] || die "there is no $2, but $(daemons | xargs)" 2
    case $1-$(pid_of "$2") in
    start-) launch "$2"; ready "$2"; settle ;;
    kill-) die "$2 does not run" 3 ;;
    kill-*) kill -KILL "$(pid_of "$2")"; await 5 is_down "$2" ;;
    esac
}

# For tests: without a cluster, they skip what they cannot test and report it.
with() { # COMMAND...
    local was_up=no status=0
    (($#)) || usage
    ! "$0" status >/dev/null 2>&1 || was_up=yes
    "$0" start || exec "$@"
    trap : INT TERM
    "$@" || status=$?
    [[ $was_up == yes ]] || "$0" stop
    exit $status
}

[[ ${1-} == @(start|stop|status|daemon|with) ]] || usage
"$@"
