#!/usr/bin/env bash
# Trains on the 16 IPUs of one host. (Without IPUs no script is needed: `python pretrain.py --config ...`.)
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(basename "$0")"

usage() {
    cat <<TEXT
Trains ViT-B/16 on generated data on the 16 IPUs of one host: four replicas of four stages, 65,520 images a weight update.

  $name -s SERVER -p PARTITION [options] [-- flags of pretrain.py]

  -s SERVER       host of the V-IPU server
  -p PARTITION    V-IPU partition
  --config NAME   of configs.yaml (default: b16_in1k_pretrain)
  --dry-run       print the command, and stop
  --help          this text
TEXT
}

fail() {
    printf 'error: %s\n       %s --help lists the options.\n' "$1" "$name" >&2
    exit 2
}

server="" partition="" config=b16_in1k_pretrain dry_run=false
extra=()
while (($#)); do
    case "$1" in
        -s | -p | --config) [[ -n "${2-}" && "$2" != -* ]] || fail "$1 needs a value." ;;
        --config=*) [[ "$1" != --config= && "$1" != --config=-* ]] || fail "--config needs a value." ;;
    esac
    case "$1" in
        -s) server="$2" && shift ;;
        -p) partition="$2" && shift ;;
        --config) config="$2" && shift ;;
        --config=*) config="${1#*=}" ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            shift
            extra=("$@")
            break
            ;;
        *) fail "$1 is no option of this script. Flags of pretrain.py go behind --." ;;
    esac
    shift
done
[[ -n "$server" ]] || fail "-s is missing: the host of the V-IPU server."
[[ -n "$partition" ]] || fail "-p is missing: the V-IPU partition."

# 12 images x 1,365 x 4 replicas = 65,520, the multi-host batch; 64 iterations and 64 loader workers as published.
command=(
    env "IPUOF_VIPU_API_HOST=$server" "IPUOF_VIPU_API_PARTITION_ID=$partition"
    python "$here/pretrain.py" --config "$config" --runtime ipu --dataset generated
    --iterations 64 --micro-batch-size 12 --gradient-accumulation 1365 --replication-factor 4
    --rebatched-worker-size 1365 --dataloader-workers 64
    --enable-rts true --optimizer-state-offchip false --byteio true
    ${extra[@]+"${extra[@]}"}
)
if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
else
    "${command[@]}" 2>&1 | tee "vit_scalability_$(date +%Y%m%d%H%M%S).log"
fi
