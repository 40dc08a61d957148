#!/usr/bin/env bash
# End what start.sh started, by the process ids that it recorded, and remove the folder: tests/slurm/stop.sh DIR
set -uo pipefail
DIR=$(cd "$1" && pwd) || exit 0
export SLURM_CONF="$DIR/slurm.conf" PATH="/usr/sbin:/sbin:$PATH"

running() {
  local state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 1
  [ "${state%% *}" != Z ]
}
stop() { # FILE PROGRAM: ask, wait up to 15 s, kill; never a process that is something else by now
  local process
  [ -s "$1" ] || return 0
  process=$(cat "$1")
  if running "$process" && tr '\0' ' ' <"/proc/$process/cmdline" | grep -q "$2"; then
    kill "$process"
    for _ in $(seq 75); do
      running "$process" || return 0
      sleep 0.2
    done
    kill -9 "$process"
  fi
}

# running jobs first, otherwise their processes stay
if [ -s "$DIR/slurmctld.pid" ] && running "$(cat "$DIR/slurmctld.pid")"; then
  timeout 10 scancel --full --user="$(id -un)"
  for _ in $(seq 75); do
    [ -n "$(timeout 5 squeue -h)" ] || break
    sleep 0.2
  done
fi
for file in "$DIR"/slurmd.*.pid; do stop "$file" slurmd; done
# a job that was submitted in between keeps its step daemon, which knows the folder of the logs as its own
for process in /proc/[0-9]*; do
  [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ] || continue
  case $(readlink "$process/cwd") in "$DIR"/*) kill -9 "${process#/proc/}" ;; esac
done
stop "$DIR/slurmctld.pid" slurmctld
stop "$DIR/munged.pid" munged
rm -rf "$DIR"
