# SPDX-License-Identifier: Apache-2.0
# Completion of tapster(1) in bash.
#
# Devices are found with ip(8): it needs no root, takes milliseconds and changes
# nothing. Names that a shell could misread are not offered. Leases to change come from
# tapster itself, which knows their states and owners: who may not ask it may not change
# them either.

_tapster_links() { # PATTERN IP-OPTION...: what sed prints of the devices in $netns
    ip ${netns:+-n "$netns"} -o link show "${@:2}" 2>/dev/null |
        sed -En "s/^[0-9]+: ([[:alnum:]_.-]+)[@:].*$1/p"
}

_tapster_changed() { # VERB: the leases that it takes, by name only with their owner
    local state=active id name place owner_of busy='' i
    for ((i = 0; i < ${#at[@]}; i++)); do # tapster would make a ledger that is missing
        [[ ${at[i]} == --ledger && ! -e ${at[i + 1]} ]] && return
        [[ ${at[i]} == --ledger=* && ! -e ${at[i]#*=} ]] && return
    done
    [[ $1 == reap ]] && state=fin_wait
    # A tap of one queue can be open once.
    [[ $1 == open ]] && busy=$(ip ${netns:+-n "$netns"} -o -d link show type tun up 2>/dev/null |
        sed -En '/multi_queue/d; /LOWER_UP/s/^[0-9]+: ([^:@]+)[@:].*/ \1 /p')
    command tapster "${at[@]}" ls --state "$state" ${owner+--owner "$owner"} \
        ${netns:+--netns "$netns"} --format '{id} {name} {netns} {owner}' 2>/dev/null |
        while read -r id name place owner_of; do
            [[ $busy == *" $name "* ]] && continue
            echo "$id"
            # A name elsewhere may be one of several.
            [[ ($netns || $place == -) && (-v owner || ! $owner_of) ]] && echo "$name"
        done
}

_tapster_command() { # INDEX: COMP_WORDS from there on are the COMMAND of run or open
    if declare -F _command_offset >/dev/null; then # it is in bash-completion
        _command_offset "$1"
    elif ((COMP_CWORD == $1)) && [[ $word != */* ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$word")
    else
        compopt -o default
    fi
}

_tapster() {
    local IFS=$' \t\n' i part words=("$1") dashes='' verb='' netns=''
    local word option value options='' operands
    local ours='alias tapster:[^:]*:([[:xdigit:]]+)$'
    local wire=(bridge= ovs= redirect= mtu= isolated learning root-guard bpdu-guard vlan= trunk= external-id= filter
        address= guard inbound= outbound= outbound-pps= standby up down)
    local nic=(kind= link= link-netns= mode= name= naming= key= owner= label= mac= queues= user= group=
        fin-wait= reclaim vm= incoming= takeover vnet-hdr "${wire[@]}")
    local at=() owner
    unset owner # until it is given
    local chosen='--owner --bridge --state --netns --label'
    COMPREPLY=()

    # Bash splits words at = and : too; here --bridge=br0 is one word.
    for ((i = 1; i <= COMP_CWORD; i++)); do
        part=${COMP_WORDS[i]}
        if [[ $part == [=:]* || ($part && ${COMP_WORDS[i - 1]} == *[=:]) ]]; then
            words[-1]+=$part
        else
            words+=("$part")
        fi
        [[ $part == -- && ! $dashes && $i -lt $COMP_CWORD ]] && dashes=$i
    done

    word=${words[-1]} option=${words[-2]} value=$word
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
            --ledger | --socket) at+=("${words[i]}" "${words[++i]}") ;;
            --ledger=* | --socket=*) at+=("${words[i]}") ;;
            --netns) netns=${words[++i]} ;;
            --netns=*) netns=${words[i]#*=} ;;
            --owner) owner=${words[++i]} ;;
            --owner=*) owner=${words[i]#*=} ;;
            -*) ;;
            *) verb=${verb:-${words[i]}} ;;
        esac
    done
    if [[ $verb == @(run|open) && $dashes ]]; then
        _tapster_command $((dashes + 1))
        return
    fi

    [[ $word == --*=* ]] && option=${word%%=*} value=${word#*=}
    if [[ $option == --nic ]]; then
        part=${value##*,} value=${value##*[=:]}
        if [[ $part != *=* ]]; then
            compopt -o nospace
            mapfile -t COMPREPLY < <(
                compgen -P "${value%"$part"}" -W "${nic[*]}" -- "$part"
            )
            return
        fi
        option=--${part%%=*}
    fi

    case $option in
        --kind) operands='tap macvtap' ;;
        --mode) operands='bridge vepa private passthru' ;;
        --naming) operands='lowest next stable' ;;
        --state) operands='reserved active fin_wait' ;;
        --event) operands='refused lost held moved renamed down changed sound repaired set reopened' ;;
        --sort) operands='age name owner state on' ;;
        --bridge) operands=$(_tapster_links '/\1' type bridge) ;;
        --link | --redirect) operands=$(_tapster_links '/\1' up) ;;
        --user | --group)
            mapfile -t COMPREPLY < <(compgen -A "${option#--}" -- "$value")
            return
            ;;
        --netns | --link-netns)
            compopt -o default # or a path
            [[ $value == */* ]] ||
                mapfile -t COMPREPLY < <(cd /run/netns 2>/dev/null && compgen -f -- "$value")
            return
            ;;
        --ledger | --socket | --config | --output | -o | --template)
            compopt -o default # files
            return
            ;;
        --name | --key | --owner | --pid | --mac | --mtu | --queues | --fin-wait | --vm | --incoming | --at | --remove | \
            --ovs | --vlan | --trunk | --external-id | --address | --inbound | --outbound | --outbound-pps | \
            --interval | --count | --format | --label | --lease | --since | --until | --limit)
            return
            ;;
        *)
            wire=("${wire[@]%=}" no-isolated no-learning no-root-guard no-bpdu-guard no-filter no-guard no-standby)
            nic=("${nic[@]%=}" no-isolated no-learning no-root-guard no-bpdu-guard no-filter no-guard no-standby no-vnet-hdr)
            case $verb in
                '')
                    options=--version
                    operands='add rm ls set take show who events report run open reap recover doctor fleet
                        libvirt install-service watch top'
                    ;;
                add) options="${nic[*]/#/--} --netns --pid --id --format --json --wait" ;;
                rm)
                    options="$chosen --all --ignore-missing --dry-run"
                    operands=$(_tapster_changed "$verb")
                    ;;
                ls)
                    options="$chosen --all --sort --quiet --id --format --json"
                    operands=$(_tapster_links "$ours/\1 \2")
                    ;;
                set)
                    options="${wire[*]/#/--} --owner --netns --json"
                    operands=$(_tapster_changed "$verb")
                    ;;
                take)
                    options='--owner --netns --json'
                    operands=$(_tapster_changed "$verb")
                    ;;
                show)
                    options="$chosen --json"
                    operands=$(_tapster_links "$ours/\1 \2")
                    ;;
                who)
                    options='--owner --mac --lease --label --at --since --until --limit --json'
                    operands=$(_tapster_links "$ours/\1")
                    ;;
                events)
                    options='--event --owner --lease --since --until --limit --json'
                    operands=$(_tapster_links "$ours/\1")
                    ;;
                report) options='--output --since --until --limit' ;;
                open)
                    options='--owner --netns'
                    operands=$(_tapster_changed "$verb")
                    ;;
                run) options="${nic[*]/#/--} --nic --netns --wait --wait-forwarding --template" ;;
                reap)
                    options="$chosen --now"
                    operands=$(_tapster_changed "$verb")
                    ;;
                recover) options='--dry-run --json' ;;
                doctor) options='--json --remove --user --config' ;;
                fleet)
                    options=--config
                    operands='init join leave sync epoch ls hosts who where doctor
                        fence forget evict'
                    ;;
                libvirt)
                    options=''
                    operands='install uninstall adopt release attach detach ls hook'
                    ;;
                install-service) options='--dry-run --remove' ;;
                watch)
                    options="$chosen --json"
                    operands=$(_tapster_links "$ours/\1 \2")
                    ;;
                top) options='--interval --count --sort' ;;
                *) return ;;
            esac
            [[ $word == -* || ! -v operands ]] && operands="$options --help --ledger --socket --verbose"
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$operands" -- "$value")
}

complete -F _tapster tapster
