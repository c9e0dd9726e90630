# What the batch scripts of slurm/ and pbs/ share; read with `source`. See docs/clusters.md.
#
#   RUN        the run directory, where a run goes on after an interruption
#   PROVIDER   of libfabric, for the servers: tcp (default), verbs, cxi
#   MEMORY     of each server (default: 16GiB)
#   MARGIN     seconds before the wall-time limit at which the search leaves (default: 120)

PYTHON=${PYTHON:-python}

# Have servers and their clients prove to each other that they know a key, which is made in the directory $1, unless
# CPP_STORE_KEY_FILE names one.
use_key() {
    if [ -z "${CPP_STORE_KEY_FILE:-}" ]; then
        CPP_STORE_KEY_FILE=$1/key
        "$PYTHON" -m cpp_store.command keygen "$CPP_STORE_KEY_FILE" > /dev/null || return
    fi
    export CPP_STORE_KEY_FILE
}

# Start a server on this host; its address goes to a file of the directory $1. Runs until it is killed.
serve() {
    local address_of_host
    # The first address of the host: the one that other nodes reach. Give ADDRESS if that is another.
    address_of_host=${ADDRESS:-$(hostname -I 2>/dev/null | cut -d' ' -f1)}
    exec cpp-store-server "ofi+${PROVIDER:-tcp}://${address_of_host:-127.0.0.1}:0" --memory "${MEMORY:-16GiB}" \
        > "$1/$(hostname).${SLURM_PROCID:-$$}.address"
}

# Wait until $2 servers have written their addresses to the directory $1; set MODEL_SERVERS.
wait_for_servers() {
    local seconds=0
    until [ "$(cat "$1"/*.address 2>/dev/null | grep -c '^ofi+')" -ge "$2" ]; do
        if [ $((seconds += 1)) -gt 300 ]; then
            echo "no $2 servers after 5 minutes; see what they wrote to standard error" >&2
            return 1
        fi
        sleep 1
    done
    MODEL_SERVERS=$(cat "$1"/*.address | xargs)
    export MODEL_SERVERS
}

# Start a search in $RUN with the command "$@", and return what it meant: a search that has lost a rank has the launcher
# end the others, and leaves its exit code in the run directory, since launchers return what they like then.
search() {
    local code
    rm -f "$RUN/exit_code"
    "$@"
    code=$?
    [ ! -e "$RUN/exit_code" ] || code=$(<"$RUN/exit_code")
    return "$code"
}

# Print --resume if the run has begun, and the --max_wait that the time limit $1 (seconds since 1970, or nothing) leaves.
flags_for_now() {
    local left
    [ ! -e "$RUN/run.json" ] || echo --resume
    if [ -n "${1:-}" ]; then
        left=$(($1 - $(date +%s) - ${MARGIN:-120}))
        echo "--max_wait $((left > 0 ? left : 1))"
    fi
}

# Succeed if a search that ended with exit code $1 goes on with --resume: it left at --max_wait, or a signal ended it
# (SIGINT, SIGKILL, SIGTERM). A crash would only come again.
resumable() {
    case $1 in 75 | 130 | 137 | 143) return 0 ;; *) return 1 ;; esac
}

# Say what an exit code means, and end the job: 0 for whoever asks the queue if the run is done.
finish() {
    case $1 in
        0) echo "$RUN: done" ;;
        3) echo "$RUN: nothing was left to do"; exit 0 ;;
        *) echo "$RUN: failed with exit code $1; see its logs" >&2 ;;
    esac
    exit "$1"
}
