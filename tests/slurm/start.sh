#!/usr/bin/env bash
# A throw-away SLURM on loopback for the tests: no systemd, no cgroups, no database. Needs slurm-wlm and munge.
#
#   tests/slurm/start.sh DIR && . DIR/env.sh        two nodes, then: sinfo, sbatch, snakemake --executor slurm
#   tests/slurm/stop.sh DIR                         ends it and removes DIR
#
# Everything is written below DIR; nodes, CPUs, memory and GPUs are pretended. Run again it starts the daemons that died.
set -euo pipefail
DIR=$(mkdir -p "$1" && cd "$1" && pwd)
# a step's socket, $DIR/spool/node1/node1_1234.4294967291: longer ones leave every job pending, for ever
[ ${#DIR} -le 73 ] || { echo "$DIR has more than 73 characters, too many for sockets; name a shorter folder" >&2; exit 1; }
NODES=(node1 node2) CPUS=4 MEMORY=8000 GPUS=2 # of each node; GPUs of the first
PORT=${SLURM_TEST_PORT:-26900}
HOST=$(hostname -s)
ME=$(id -un)
export PATH="/usr/sbin:/sbin:$PATH" SLURM_CONF="$DIR/slurm.conf"
umask 022

running() { # a zombie does not count: process 1 of a container may not collect it
  local state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 1
  [ "${state%% *}" != Z ]
}
alive() { [ -s "$1" ] && running "$(cat "$1")"; }
die() {
  echo "slurm does not start: $*" >&2
  tail -n 15 "$DIR"/log/*.log >&2
  exit 1
}

mkdir -p "$DIR"/{state,spool,log,bin}
[ -s "$DIR/munge.key" ] || mungekey --create --keyfile="$DIR/munge.key"
chmod 600 "$DIR/munge.key"

{
  cat <<END
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
CredType=cred/munge
# a job whose node was lost waits until the credentials of its first start have expired: 120 s, if not told
AuthInfo=socket=$DIR/munge.sock,cred_expire=10
# bind to the address that the host name has, not to all
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange=$((PORT + 100))-$((PORT + 199))
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# CPUs and memory below are believed, whatever the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# without it a job that names no memory takes all of the node's
DefMemPerCPU=500
GresTypes=gpu
# limits of memory are kept by looking every second
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2
KillWait=5
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
# squeue shows finished jobs that long
MinJobAge=3600
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
END
  for i in "${!NODES[@]}"; do
    gres=
    [ "$i" != 0 ] || gres=" Gres=gpu:$GPUS"
    echo "NodeName=${NODES[i]} NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS" \
      "RealMemory=$MEMORY$gres State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE MaxCPUsPerNode=1 State=UP" # two at once
  echo "PartitionName=gpu Nodes=${NODES[0]} DefaultTime=60 MaxTime=INFINITE State=UP"
} >"$DIR/slurm.conf"
{
  echo "AutoDetect=off"
  # any devices stand in for GPUs: they only have to exist and to differ
  for device in /dev/null /dev/zero; do echo "NodeName=${NODES[0]} Name=gpu File=$device"; done
} >"$DIR/gres.conf"
# 23.11 and later look for a cgroup unless told not to; earlier ones do not know the value
if [ "$(slurmctld -V | grep -oE '[0-9]+' | head -1)" -ge 23 ]; then echo "CgroupPlugin=disabled" >"$DIR/cgroup.conf"; fi

# inside of a job the variables SLURM_* are dropped before srun is called, and with them the place of the configuration
printf '#!/bin/sh\nSLURM_CONF=%q exec /usr/bin/srun "$@"\n' "$DIR/slurm.conf" >"$DIR/bin/srun"
chmod 755 "$DIR/bin/srun"
printf 'export SLURM_CONF=%q PATH=%q:"$PATH"\n' "$DIR/slurm.conf" "$DIR/bin" >"$DIR/env.sh"
for name in $(env | grep -oE '^(SLURM|SRUN|SBATCH|SALLOC)_[A-Z0-9_]+' || true); do
  case $name in SLURM_CONF | SLURM_TEST_*) ;; *) unset "$name" ;; esac
done

alive "$DIR/munged.pid" || {
  rm -f "$DIR"/munge.sock*
  # --force: the folder of a test is readable by its owner alone, which is all that is needed here
  munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.sock" --pid-file="$DIR/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge.seed" 2>/dev/null || die munged
}
if ! alive "$DIR/slurmctld.pid"; then
  clear=
  # after a crash the saved state may hold jobs that seem to run for ever
  if [ -e "$DIR/slurmctld.pid" ]; then clear=-c; fi
  rm -f "$DIR/slurmctld.pid"
  slurmctld $clear -f "$SLURM_CONF" || die slurmctld
fi
for node in "${NODES[@]}"; do
  alive "$DIR/slurmd.$node.pid" || {
    rm -f "$DIR/slurmd.$node.pid"
    slurmd -N "$node" -f "$SLURM_CONF" || die "slurmd $node"
  }
done

for try in $(seq 150); do
  states=$(sinfo -h -N -o '%N %T' 2>/dev/null | sort -u || true)
  if [ "$(grep -cE ' (idle|mixed|allocated)$' <<<"$states")" = "${#NODES[@]}" ]; then
    echo "slurm ready"
    exit 0
  fi
  if [ "$try" = 25 ]; then # after an unclean end a node may come back as down
    scontrol update nodename="$(IFS=, && echo "${NODES[*]}")" state=resume 2>/dev/null || true
  fi
  sleep 0.2
done
die "the nodes are not idle after 30 s: $states"
