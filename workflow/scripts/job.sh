# Sourced by the shell of every job: one writer for an output, whole inputs, one GPU for a job that uses one. Writer and
# GPU are locks that the kernel holds for as long as the Python of the job lives, and releases however it ends.
#
#   RESURGENCE_GPU_STAGES   `-m MODULE ...|-m MODULE ...`: the commands of rules that use a GPU; none without GPU
#   RESURGENCE_CHECKED      the same for rules whose inputs are hashed first: a damaged one is an error, not a result
#   RESURGENCE_LOCKS        folder of the locks of GPUs, on this machine (default: below TMPDIR)
#   CUDA_VISIBLE_DEVICES    where it is set, one of these devices is taken; inside of a SLURM job it stays as it is

python() {
  local before= word artefacts=()
  for word in "$@"; do
    if [ "$before" = --out ]; then only_writer "$word"; fi
    case $word in results/*/manifest.json) [ "$before" = --out ] || artefacts+=("$word") ;; esac
    before=$word
  done
  if [ "${#artefacts[@]}" != 0 ] && one_of "${RESURGENCE_CHECKED:-}" "$*"; then
    command python -m resurgence.provenance.manifest "${artefacts[@]}" || exit 1
  fi
  if one_of "${RESURGENCE_GPU_STAGES:-}" "$*"; then take_device; fi
  command python "$@"
}

# A job that a killed Snakemake left behind may still write: a second writer waits for it, then gives up.
only_writer() {
  local lock=.snakemake/writers/${1//\//%} status=0
  mkdir -p .snakemake/writers
  exec {WRITER}>>"$lock"
  flock --wait "${RESURGENCE_WAIT:-60}" --conflict-exit-code 99 "$WRITER" || status=$?
  if [ "$status" = 99 ]; then
    echo "$1 is still being written by another process ($(tail -n 1 "$lock")); run: resurgence resume" >&2
    exit 1
  elif [ "$status" != 0 ]; then
    echo "warning: the file system of $PWD has no locks (flock exits $status): nothing keeps a second job from $1" >&2
  fi
  echo "host $(uname -n), process $$, SLURM job ${SLURM_JOB_ID:-none}" >"$lock"
}

one_of() { # STAGES COMMAND
  local stage stages
  IFS='|' read -r -a stages <<<"$1"
  for stage in "${stages[@]}"; do
    case "$2 " in "$stage "*) return 0 ;; esac
  done
  return 1
}

# One of the devices, before Python starts: what it initialises first cannot see the others.
take_device() {
  local folder=${RESURGENCE_LOCKS:-${TMPDIR:-/tmp}/resurgence-$(id -u)} devices device told=
  [ -z "${SLURM_JOB_ID:-}" ] || return 0
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    devices=${CUDA_VISIBLE_DEVICES//,/ }
  else
    devices=$(nvidia-smi --query-gpu=index --format=csv,noheader)
    export CUDA_DEVICE_ORDER=PCI_BUS_ID # the numbers of nvidia-smi
  fi
  [ -n "$devices" ] || return 0
  mkdir -p "$folder"
  while true; do
    for device in $devices; do
      exec {DEVICE}>>"$folder/gpu-${device//[^A-Za-z0-9-]/_}"
      if flock --nonblock "$DEVICE"; then
        export CUDA_VISIBLE_DEVICES=$device
        return 0
      fi
      exec {DEVICE}>&-
    done
    if [ -z "$told" ]; then
      echo "waiting for a GPU: $(echo $devices) in use, locks in $folder" >&2
      told=1
    fi
    sleep "0.$((RANDOM % 5 + 5))"
  done
}
