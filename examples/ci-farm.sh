#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a command for each line of standard input, in a VM's place: some at a time, each
# with a device of its own.
#
#   printf '%s\n' job1 job2 job3 | ci-farm.sh BRIDGE PARALLEL COMMAND...
#
# COMMAND has the line in $JOB, and what `tapster run` fills in, such as {fd} and {mac}.
# Each device ends with its command, also if this script is killed. The exit status is 1
# if a job failed.
set -euo pipefail

bridge=$1 parallel=$2
shift 2
failed=0

start() {
    JOB=$1 tapster run --bridge "$bridge" --name 'ci%d' --owner "ci-$1" \
        --label "farm=$$" --fin-wait 1 -- "${@:2}" </dev/null &
}

wait_for_one() {
    wait -n || failed=1
    running=$((running - 1))
}

# A device that ends with its command needs no cleanup. Jobs do: they would go on.
trap 'trap - EXIT; kill 0' INT TERM

running=0
while read -r job; do
    ((running < parallel)) || wait_for_one
    start "$job" "$@"
    running=$((running + 1))
done
while ((running > 0)); do
    wait_for_one
done
exit "$failed"
