#!/usr/bin/env bash
# Trains on several hosts: on IPU pods through `poprun`, elsewhere through `torchrun` on every host. See docs/hosts.md.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(basename "$0")"

usage() {
    cat <<TEXT
Trains on several hosts. The code, its environment and the data lie at the same paths on all of them.

IPU pods, where poprun is on PATH:
  $name -n HOST,HOST,... -s SERVER -o INTERFACE -b INTERFACE -p PARTITION -c ALLOCATION [options] [-- flags]

Other hosts, through torchrun:
  $name --torchrun -n HOST,HOST,... [-b INTERFACE] [options] [-- flags]     started by ssh
  $name --srun [-b INTERFACE] [options] [-- flags]                          in a Slurm allocation, on its hosts

Behind -- stand flags of pretrain.py, or of the script that --script names.

  -n HOSTS           names or addresses, separated by commas; the first one's processes print
  -s SERVER          host of the V-IPU server
  -o INTERFACE       network interface of the control plane
  -b INTERFACE       network interface of the data plane
  -p PARTITION       V-IPU partition
  -c ALLOCATION      V-IPU allocation (cluster)
  --script FILE      pretrain.py, finetune.py or validation.py (default: pretrain.py)
  --config NAME      of configs.yaml (default: b16_in1k_pretrain, on IPU pods on generated data)
  --torchrun         torchrun, even where poprun is there
  --srun             the same, started by srun
  --nproc-per-node K processes a host under torchrun: a number, gpu, cpu or auto (default: auto, one a GPU, else one a core)
  --master-port P    port of the first host at which torchrun's processes meet (default: 29400)
  --dry-run          print what would be run, and stop
  --help             this text
TEXT
}

fail() {
    printf 'error: %s\n       %s --help lists the options.\n' "$1" "$name" >&2
    exit 2
}

# Words as a shell takes them, any shell: what needs it in single quotes.
quoted() {
    local word text=""
    for word in "$@"; do
        if [[ -z "$word" || "$word" == *[!a-zA-Z0-9_./:=,@%+-]* ]]; then
            word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
        fi
        text+="${text:+ }$word"
    done
    printf '%s\n' "$text"
}

hosts="" server="" control="" data="" partition="" allocation=""
script=pretrain.py config="" launcher="" processes="" port="" dry_run=false
extra=()
while (($#)); do
    option="$1" takes_value=true
    shift
    case "$option" in
        -n | -s | -o | -b | -p | -c | --script | --config | --nproc-per-node | --master-port)
            value="${1-}"
            (($# == 0)) || shift
            ;;
        -[nsobpc]?*)
            value="${option:2}"
            option="${option:0:2}"
            ;;
        --script=* | --config=* | --nproc-per-node=* | --master-port=*)
            value="${option#*=}"
            option="${option%%=*}"
            ;;
        *) takes_value=false ;;
    esac
    ! $takes_value || [[ -n "$value" && "$value" != -* ]] || fail "$option needs a value."
    case "$option" in
        -n) hosts="$value" ;;
        -s) server="$value" ;;
        -o) control="$value" ;;
        -b) data="$value" ;;
        -p) partition="$value" ;;
        -c) allocation="$value" ;;
        --script) script="$value" ;;
        --config) config="$value" ;;
        --nproc-per-node) processes="$value" ;;
        --master-port) port="$value" ;;
        --torchrun) launcher="${launcher:-torchrun}" ;;
        --srun) launcher=srun ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            extra=("$@")
            break
            ;;
        *) fail "$option is no option of this script. Flags of $script go behind --." ;;
    esac
done

if [[ -z "$launcher" ]] && command -v poprun >/dev/null; then
    launcher=poprun
    [[ -z "$processes$port" ]] ||
        fail "--nproc-per-node and --master-port are for torchrun, but poprun is on PATH: leave them out, or add --torchrun."
elif [[ -z "$launcher" ]]; then
    launcher=torchrun
    [[ -z "$server$control$partition$allocation" ]] ||
        fail "-s, -o, -p, -c are for poprun, which is not on PATH: source the SDK's environment, or leave them out to start torchrun."
fi
processes="${processes:-auto}" port="${port:-29400}"
if [[ ! "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then fail "--master-port $port: a number from 1 to 65535."; fi
[[ "$processes" =~ ^([1-9][0-9]*|gpu|cpu|auto)$ ]] || fail "--nproc-per-node $processes: a number, gpu, cpu or auto."
[[ "$script" =~ ^(pretrain|finetune|validation)\.py$ ]] || fail "--script $script: pretrain.py, finetune.py or validation.py."

# What is named behind --, in the spellings that the Python scripts know.
names_config=false names_data=false
for word in ${extra[@]+"${extra[@]}"}; do
    case "${word%%=*}" in
        --config | --config-file | --config_file) names_config=true ;;
        --dataset | --dataset-path | --dataset_path) names_data=true ;;
    esac
done
generated=false # the scalability run on generated data, with all of its settings; under poprun alone
if [[ -n "$config" ]] || $names_config; then
    config_flags=(${config:+--config "$config"})
else
    [[ "$script" == pretrain.py ]] || fail "--script $script needs --config, too: the default is a config for pretrain.py."
    config_flags=(--config b16_in1k_pretrain)
    $names_data || generated=true
fi

if [[ "$launcher" == srun ]]; then
    [[ -z "$hosts" ]] || fail "--srun takes the hosts of the Slurm allocation: leave -n out."
    [[ -n "${SLURM_JOB_NODELIST:-}" ]] || fail "--srun needs a Slurm allocation (sbatch or salloc); SLURM_JOB_NODELIST is not set."
    hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)"
fi
[[ -n "$hosts" ]] || fail "-n is missing: the hosts, separated by commas."
[[ ",$hosts," != *,,* && "$hosts" != *[[:space:]]* ]] || fail "-n '$hosts' has an empty name or a space: host1,host2,host3."
IFS=, read -r -a host_list <<<"$hosts"
num_hosts=${#host_list[@]}
(($(printf '%s\n' "${host_list[@]}" | sort -u | wc -l) == num_hosts)) || fail "-n '$hosts' names a host twice."

# ---------------------------------------------------------------------------------------------------------------- IPU pods

# Replicas, instances and ILDs are those of every run. The rest is for generated data (`generated`), whose runs make 65,536
# images a weight update on any number of hosts, or as near as whole micro-batches come. A host has 16 IPUs: four replicas
# of four stages. The rows of 4, 8 and 16 hosts (Pod64, Pod128, Pod256) are the published ones; for other numbers:
#   instances               one a host
#   ILDs                    IPU-link domains, of up to four hosts each
#   micro_batch_size        12, and 14 from eight hosts on, where more fits
#   gradient_accumulation   65,536 / (micro batch x replicas), rounded; at least 7, as four stages need
#   rebatched_worker_size   the accumulation times 8, 4, 2 or 1, below 1,400 images; divides an instance's images of an update
#   iterations              64 a host: the generated data is split over the instances
pod_settings() {
    replicas=$((4 * num_hosts)) workers=64 iterations=$((64 * num_hosts))
    case "$num_hosts" in
        4) ilds=8 instances=8 micro_batch=12 accumulation=341 rebatched=1364 workers=32 ;;
        8) ilds=2 instances=8 micro_batch=14 accumulation=146 rebatched=1168 ;;
        16) ilds=4 instances=16 micro_batch=14 accumulation=73 rebatched=584 ;;
        *)
            ilds=$(((num_hosts + 3) / 4)) instances=$num_hosts
            micro_batch=$((num_hosts < 8 ? 12 : 14))
            accumulation=$(((65536 + micro_batch * replicas / 2) / (micro_batch * replicas)))
            ((accumulation >= 7)) || accumulation=7
            rebatched=$((accumulation * 8))
            while ((rebatched >= 1400 && rebatched > accumulation)); do rebatched=$((rebatched / 2)); done
            ;;
    esac
}

run_poprun() {
    local missing="" pair
    for pair in "-s:$server" "-o:$control" "-b:$data" "-p:$partition" "-c:$allocation"; do
        [[ -n "${pair#*:}" ]] || missing+="${missing:+, }${pair%%:*}"
    done
    [[ -z "$missing" ]] || fail "poprun needs $missing, too (--torchrun runs without IPUs)."
    pod_settings
    local scalability=()
    ! $generated || scalability=(
        --dataset generated
        --iterations "$iterations" --micro-batch-size "$micro_batch" --gradient-accumulation "$accumulation"
        --rebatched-worker-size "$rebatched" --dataloader-workers "$workers"
        --enable-rts true --optimizer-state-offchip false --byteio true
    )
    local passed="" variable
    for variable in OPAL_PREFIX LD_LIBRARY_PATH PATH PYTHONPATH CPATH IPUOF_VIPU_API_TIMEOUT POPLAR_LOG_LEVEL \
        POPLAR_SDK_ENABLED POPLAR_ENGINE_OPTIONS; do
        passed+="${passed:+ }-x $variable"
    done
    # One list, so that no argument can get lost at the end of a line. Timeouts in seconds: large pods compile and load for long.
    command=(
        env IPUOF_VIPU_API_TIMEOUT=1000 "POPLAR_LOG_LEVEL=${POPLAR_LOG_LEVEL:-WARN}"
        'POPLAR_ENGINE_OPTIONS={"target.hostSyncTimeout": "3000"}'
        poprun --vv "--host=$hosts"
        "--vipu-server-host=$server" "--vipu-partition=$partition" "--vipu-cluster=$allocation"
        --vipu-server-timeout=6000 --reset-partition=no
        "--num-ilds=$ilds" "--num-replicas=$replicas" "--num-instances=$instances" --ipus-per-replica=4
        "--mpi-global-args=--output-filename output_poprun --mca oob_tcp_if_include $control --mca btl_tcp_if_include $data"
        "--mpi-local-args=$passed"
        python "$here/$script" "${config_flags[@]}" --runtime ipu ${scalability[@]+"${scalability[@]}"}
        ${extra[@]+"${extra[@]}"}
    )
    if $dry_run; then
        quoted "${command[@]}"
        return
    fi
    "${command[@]}" 2>&1 | tee "vit_scalability_$(date +%Y%m%d%H%M%S).log"
}

# ------------------------------------------------------------------------------------------------------------- other hosts

# torchrun with what is the same on all hosts; the node's rank comes first, from `node_command` or Slurm.
find_torchrun() {
    torchrun="$(command -v torchrun || true)"
    [[ -n "$torchrun" || ! -x "$here/.venv/bin/torchrun" ]] || torchrun="$here/.venv/bin/torchrun"
    [[ -n "$torchrun" ]] || fail "there is no torchrun on PATH: make setup, then source .venv/bin/activate."
    common=(
        "--nnodes=$num_hosts" "--master-addr=${host_list[0]}" "--master-port=$port" "--nproc-per-node=$processes"
        "$here/$script" "${config_flags[@]}" ${extra[@]+"${extra[@]}"}
    )
    variables=()
    [[ -z "$data" ]] || variables=(env "GLOO_SOCKET_IFNAME=$data" "NCCL_SOCKET_IFNAME=$data")
}

node_command() {
    quoted ${variables[@]+"${variables[@]}"} "$torchrun" "--node-rank=$1" "${common[@]}"
}

run_srun() {
    find_torchrun
    # Tasks are numbered over the allocation's hosts in the order in which scontrol lists them.
    # shellcheck disable=SC2016  # for the shell that Slurm starts on each host
    command=(
        srun "--nodes=$num_hosts" "--ntasks=$num_hosts" --ntasks-per-node=1 --kill-on-bad-exit=1
        ${variables[@]+"${variables[@]}"} bash -c 'exec "$0" "--node-rank=$SLURM_PROCID" "$@"' "$torchrun" "${common[@]}"
    )
    if $dry_run; then
        quoted "${command[@]}"
        return
    fi
    exec "${command[@]}"
}

# Runs $1 and ends it in order when the standard input closes: with the connection, too. For any sh.
guarded() {
    # shellcheck disable=SC2016  # for the other host's shell
    printf 'cd %s && exec 3<&0 && { %s 3<&- & run=$!; { cat <&3; kill -TERM $run; } >/dev/null 2>&1 & watch=$!; ' \
        "$(quoted "$PWD")" "$1"
    # shellcheck disable=SC2016
    printf 'wait $run; code=$?; kill $watch 2>/dev/null; exit $code; }\n'
}

run_ssh() {
    find_torchrun
    local number
    if $dry_run; then
        for number in "${!host_list[@]}"; do
            printf '%s: cd %s && %s\n' "${host_list[number]}" "$(quoted "$PWD")" "$(node_command "$number")"
        done
        return
    fi
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    mkfifo "$folder/input"
    exec 9<>"$folder/input" # which all hosts read from, and nobody writes to: closing it ends them
    stopped=0
    trap 'exec 9>&-; stopped=130' INT
    trap 'exec 9>&-; stopped=143' TERM
    local jobs=()
    for number in "${!host_list[@]}"; do
        ssh -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=6 "${host_list[number]}" \
            "$(guarded "$(node_command "$number")")" <"$folder/input" 9>&- &
        jobs[number]=$!
    done
    wait_for_all "${jobs[@]}"
}

# Waits for all hosts. Where one has failed, the others have a minute to end by themselves, as they do when training has begun.
wait_for_all() {
    local patience=${HOSTS_PATIENCE:-60} # tests have less
    local code=0 job failed left deadline=0
    local -A running=()
    for job in "$@"; do running[$job]=1; done
    while ((${#running[@]})); do
        for job in "${!running[@]}"; do
            if ! kill -0 "$job" 2>/dev/null; then
                unset "running[$job]"
                failed=0
                wait "$job" || failed=$?
                ((code)) || code=$failed
                ((failed == 0 || deadline)) || deadline=$((SECONDS + patience))
            fi
        done
        left=$((deadline - SECONDS))
        if ((deadline && left <= 0)); then
            exec 9>&-
            ((left > -patience)) || kill "${!running[@]}" 2>/dev/null || true
        fi
        sleep 0.5 9>&- || true
    done
    ((stopped == 0)) || code=$stopped
    exit "$code"
}

case "$launcher" in
    poprun) run_poprun ;;
    srun) run_srun ;;
    torchrun) run_ssh ;;
esac
