# SPDX-License-Identifier: Apache-2.0
# Completion of tapster(1) in fish.
#
# Devices are found with ip(8): it needs no root, takes milliseconds and changes
# nothing. Names that a shell could misread are not offered. Leases to change come from
# tapster itself, which knows their states and owners: who may not ask it may not change
# them either.

function __tapster_verb # the verb in the line, if any
    set -l value
    for word in (commandline -opc)[2..]
        if test -n "$value"
            set value
            continue
        end
        switch $word
            case --ledger --socket
                set value next
            case '-*'
            case '*'
                echo $word
                return
        end
    end
    return 1
end

function __tapster_is # VERB...: whether an option or an operand of a verb comes next
    set -l verb (__tapster_verb)
    or return
    contains -- $verb $argv
    and not __tapster_command
end

function __tapster_command # whether the COMMAND of run or open has begun
    set -l verb (__tapster_verb)
    or return
    contains -- $verb run open
    and contains -- -- (commandline -opc)
end

function __tapster_rest # what completes the COMMAND of run or open
    set -l words (commandline -opc) (commandline -ct)
    set -l dashes (contains -i -- -- $words)
    complete -C (string join ' ' -- (string escape -- $words[(math $dashes + 1)..]))
end

function __tapster_value # OPTION: its value in the line, if any
    set -l words (commandline -opc) (commandline -ct)
    for i in (seq (count $words))
        if test $words[$i] = $argv[1] -a $i -lt (count $words)
            echo $words[(math $i + 1)]
        else
            string replace -f -- $argv[1]= '' $words[$i]
        end
    end
end

function __tapster_links # IP-OPTION...: a line about each device in --netns
    set -l netns (__tapster_value --netns)
    set -q netns[1]
    and set netns -n $netns[-1]
    ip $netns -o link show $argv 2>/dev/null
end

function __tapster_names # IP-OPTION...: the names of devices
    __tapster_links $argv | string replace -rf '^\d+: ([\w.-]+)[@:].*' '$1'
end

function __tapster_ids
    __tapster_links | string replace -rf '.*alias tapster:[^:]*:([[:xdigit:]]+)$' '$1'
end

function __tapster_leased # the names of leases
    __tapster_links |
        string replace -rf '^\d+: ([\w.-]+)[@:].* alias tapster:[^:]*:\w+$' '$1'
end

function __tapster_changed # leases to change: by name only with their owner
    set -l verb (__tapster_verb)
    set -l netns (__tapster_value --netns)
    set -l owner (__tapster_value --owner)
    set -l state active
    test "$verb" = reap
    and set state fin_wait
    set -l at
    for option in --ledger --socket
        set -l value (__tapster_value $option)
        set -q value[1]
        and set -a at $option $value[-1]
        test "$option" = --ledger -a -n "$value[-1]" -a ! -e "$value[-1]"
        and return # tapster would make it
    end
    set -l inside
    set -q netns[1]
    and set inside -n $netns[-1]
    set -l options --state $state
    set -q owner[1]
    and set -a options --owner $owner[-1]
    set -q netns[1]
    and set -a options --netns $netns[-1]
    set -l busy # a tap of one queue can be open once
    test "$verb" = open
    and set busy (ip $inside -o -d link show type tun up 2>/dev/null |
        string match -v '*multi_queue*' | string replace -rf '^\d+: ([^:@]+)[@:].*LOWER_UP.*' '$1')
    command tapster $at ls $options --format '{id} {name} {netns} {owner}' 2>/dev/null |
        while read -l id name place of
            contains -- $name $busy
            and continue
            echo $id
            # A name elsewhere may be one of several.
            set -q netns[1]; or test "$place" = -
            and begin
                set -q owner[1]
                or test -z "$of"
            end
            and echo $name
        end
end

function __tapster_netns # a name, or any path
    switch (commandline -ct)
        case '*/*'
            __fish_complete_path (string replace -- --netns= '' (commandline -ct))
        case '*'
            set -l paths /run/netns/*
            string replace -r '.*/' '' -- $paths
    end
end

# From here on, `python -m tests.repo.pages` writes this file.

function __tapster_nic # KEY=VALUE,...: what the last part can be
    set -l given (string replace -- --nic= '' (commandline -ct))
    set -l before (string match -r '^.*,' -- $given)
    set -l last (string replace -- "$before" '' "$given")
    switch "$last"
        case 'kind=*'
            printf '%s\n' "$before"kind={tap,macvtap}
        case 'link=*'
            printf '%s\n' "$before"link=(__tapster_names up)
        case 'link-netns=*'
            printf '%s\n' "$before"link-netns=(__tapster_netns)
        case 'mode=*'
            printf '%s\n' "$before"mode={bridge,vepa,private,passthru}
        case 'naming=*'
            printf '%s\n' "$before"naming={lowest,next,stable}
        case 'user=*'
            printf '%s\n' "$before"user=(__fish_complete_users)
        case 'group=*'
            printf '%s\n' "$before"group=(__fish_complete_groups)
        case 'bridge=*'
            printf '%s\n' "$before"bridge=(__tapster_names type bridge)
        case '*=*'
        case '*'
            set -l keys kind= link= link-netns= mode= name= naming= key= owner= label= mac= vnet-hdr queues= user= group= fin-wait= reclaim vm= incoming= takeover bridge= ovs= redirect= mtu= isolated learning root-guard bpdu-guard vlan= trunk= external-id= filter address= guard inbound= outbound= outbound-pps= standby up down
            printf '%s\n' "$before"$keys
    end
end

complete -c tapster -f
complete -c tapster -n __tapster_command -a '(__tapster_rest)'
complete -c tapster -n 'not __tapster_verb' -a add -d 'create a device and print its name'
complete -c tapster -n 'not __tapster_verb' -a rm -d 'release devices'
complete -c tapster -n 'not __tapster_verb' -a ls -d 'list the leases (what tapster alone does)'
complete -c tapster -n 'not __tapster_verb' -a set -d 'change what a device is connected to'
complete -c tapster -n 'not __tapster_verb' -a take -d 'connect a device that was on standby'
complete -c tapster -n 'not __tapster_verb' -a show -d 'show a lease, its device and every difference'
complete -c tapster -n 'not __tapster_verb' -a who -d 'show who has or had a name'
complete -c tapster -n 'not __tapster_verb' -a events -d 'show what happened to devices, and refused requests'
complete -c tapster -n 'not __tapster_verb' -a report -d 'write a picture of who had which name, as one HTML page'
complete -c tapster -n 'not __tapster_verb' -a run -d 'run a command with devices that end with it'
complete -c tapster -n 'not __tapster_verb' -a open -d 'run a command with descriptors of a device that runs'
complete -c tapster -n 'not __tapster_verb' -a reap -d 'delete the devices whose FIN WAIT is over'
complete -c tapster -n 'not __tapster_verb' -a recover -d 'repair what crashes left'
complete -c tapster -n 'not __tapster_verb' -a doctor -d 'list the problems of this host, with remedies'
complete -c tapster -n 'not __tapster_verb' -a fleet -d 'share MACs and an inventory with other hosts'
complete -c tapster -n 'not __tapster_verb' -a libvirt -d 'let libvirt\'s domains have devices of Tapster'
complete -c tapster -n 'not __tapster_verb' -a install-service -d 'put the units of the daemon on this host'
complete -c tapster -n 'not __tapster_verb' -a watch -d 'print events as they happen'
complete -c tapster -n 'not __tapster_verb' -a top -d 'show leases, events and rates, live'
complete -c tapster -n 'not __tapster_verb' -s h -l help -d 'show this help message and exit'
complete -c tapster -n 'not __tapster_verb' -l ledger -r -F -d 'the ledger (else $TAPSTER_LEDGER, else /var/lib/tapster/ledger.db)'
complete -c tapster -n 'not __tapster_verb' -l socket -r -F -d 'use the daemon at this socket; without root the daemon is always used'
complete -c tapster -n 'not __tapster_verb' -s v -l verbose -d 'print each change as a command of ip, bridge, nft, tc or ovs-vsctl'
complete -c tapster -n 'not __tapster_verb' -l version -d 'print the version and exit'
complete -c tapster -n '__tapster_is add rm ls set take show who events report run open reap recover doctor fleet libvirt install-service watch top' -s h -l help -d 'show this help message and exit'
complete -c tapster -n '__tapster_is add rm ls set take show who events report run open reap recover doctor fleet libvirt install-service watch top' -l ledger -r -F -d 'the ledger (else $TAPSTER_LEDGER, else /var/lib/tapster/ledger.db)'
complete -c tapster -n '__tapster_is add rm ls set take show who events report run open reap recover doctor fleet libvirt install-service watch top' -l socket -r -F -d 'use the daemon at this socket; without root the daemon is always used'
complete -c tapster -n '__tapster_is add rm ls set take show who events report run open reap recover doctor fleet libvirt install-service watch top' -s v -l verbose -d 'print each change as a command of ip, bridge, nft, tc or ovs-vsctl'
complete -c tapster -n '__tapster_is add run' -l kind -x -a 'tap macvtap' -d 'default: tap, or macvtap with --link'
complete -c tapster -n '__tapster_is add run' -l link -x -a '(__tapster_names up)' -d 'the device that a macvtap sits on'
complete -c tapster -n '__tapster_is add run' -l link-netns -x -a '(__tapster_netns)' -d 'the namespace of LOWER, if it is another'
complete -c tapster -n '__tapster_is add run' -l mode -x -a 'bridge vepa private passthru' -d 'mode of the macvtap; default: bridge'
complete -c tapster -n '__tapster_is add run' -l name -x -d 'a template or a plain name; default: vnet%d'
complete -c tapster -n '__tapster_is add run' -l naming -x -a 'lowest next stable' -d 'how the number is picked; default: lowest'
complete -c tapster -n '__tapster_is add run' -l key -x -d 'the key from which --naming stable derives the number'
complete -c tapster -n '__tapster_is add run' -l owner -x -d 'the owner, in free text'
complete -c tapster -n '__tapster_is add run' -l label -x -d 'a label, for people and programs; may be given several times'
complete -c tapster -n '__tapster_is add run' -l mac -x -d 'the guest\'s MAC; default: a random one'
complete -c tapster -n '__tapster_is add run' -l vnet-hdr -d 'let the guest leave checksums and segmentation to the host'
complete -c tapster -n '__tapster_is add run' -l no-vnet-hdr -d 'let the guest leave checksums and segmentation to the host'
complete -c tapster -n '__tapster_is add run' -l queues -x -d 'how many queues the device has; default: 1'
complete -c tapster -n '__tapster_is add run' -l user -x -a '(__fish_complete_users)' -d 'the user who may open the tap by name; default: the caller'
complete -c tapster -n '__tapster_is add run' -l group -x -a '(__fish_complete_groups)' -d 'the group that may open the tap by name'
complete -c tapster -n '__tapster_is add run' -l fin-wait -x -d 'how long the name waits after release; default: 5s'
complete -c tapster -n '__tapster_is add run' -l reclaim -d 'take the name from a lease of the same owner that is in FIN WAIT'
complete -c tapster -n '__tapster_is add run' -l vm -x -d 'the VM, as all hosts of the fleet call it'
complete -c tapster -n '__tapster_is add run' -l incoming -x -d 'the VM still runs on another host, which printed EPOCH: see tapster fleet epoch'
complete -c tapster -n '__tapster_is add run' -l takeover -d 'start the VM although a host that does not answer may still run it'
complete -c tapster -n '__tapster_is add set run' -l bridge -x -a '(__tapster_names type bridge)' -d 'the Linux bridge that a tap joins'
complete -c tapster -n '__tapster_is add set run' -l ovs -x -d 'the Open vSwitch bridge that a tap joins'
complete -c tapster -n '__tapster_is add set run' -l redirect -x -d 'the device whose place a tap takes'
complete -c tapster -n '__tapster_is add set run' -l mtu -x -d 'the MTU; default: the bridge\'s'
complete -c tapster -n '__tapster_is add set run' -l isolated -d 'exchange no frames with other isolated ports'
complete -c tapster -n '__tapster_is add set run' -l no-isolated -d 'exchange no frames with other isolated ports'
complete -c tapster -n '__tapster_is add set run' -l learning -d 'let the bridge learn MACs from the guest'
complete -c tapster -n '__tapster_is add set run' -l no-learning -d 'let the bridge learn MACs from the guest'
complete -c tapster -n '__tapster_is add set run' -l root-guard -d 'do not let the guest become the root bridge'
complete -c tapster -n '__tapster_is add set run' -l no-root-guard -d 'do not let the guest become the root bridge'
complete -c tapster -n '__tapster_is add set run' -l bpdu-guard -d 'close the port if a BPDU comes in'
complete -c tapster -n '__tapster_is add set run' -l no-bpdu-guard -d 'close the port if a BPDU comes in'
complete -c tapster -n '__tapster_is add set run' -l vlan -x -d 'the VLAN of untagged frames'
complete -c tapster -n '__tapster_is add set run' -l trunk -x -d 'VLANs of tagged frames: 5,10-20'
complete -c tapster -n '__tapster_is add set run' -l external-id -x -d 'an external id for Open vSwitch'
complete -c tapster -n '__tapster_is add set run' -l filter -d 'drop frames that are not the guest\'s own'
complete -c tapster -n '__tapster_is add set run' -l no-filter -d 'drop frames that are not the guest\'s own'
complete -c tapster -n '__tapster_is add set run' -l address -x -d 'an IP that the guest may use'
complete -c tapster -n '__tapster_is add set run' -l guard -d 'drop what the filter cannot judge'
complete -c tapster -n '__tapster_is add set run' -l no-guard -d 'drop what the filter cannot judge'
complete -c tapster -n '__tapster_is add set run' -l inbound -x -d 'limit traffic to the guest: kB/s, kB/s, KiB'
complete -c tapster -n '__tapster_is add set run' -l outbound -x -d 'limit traffic from the guest: kB/s, kB/s, KiB'
complete -c tapster -n '__tapster_is add set run' -l outbound-pps -x -d 'limit the guest\'s frames a second'
complete -c tapster -n '__tapster_is add set run' -l standby -d 'connect it to nothing until tapster take'
complete -c tapster -n '__tapster_is add set run' -l no-standby -d 'connect it to nothing until tapster take'
complete -c tapster -n '__tapster_is add set run' -l up -d 'plug the guest\'s cable in (the default)'
complete -c tapster -n '__tapster_is add set run' -l down -d 'pull the guest\'s cable out'
complete -c tapster -n '__tapster_is add run' -l wait -d 'while the name is in FIN WAIT, wait for at most TIME'
complete -c tapster -n '__tapster_is add' -l netns -x -a '(__tapster_netns)' -d 'create it in this network namespace (name or path)'
complete -c tapster -n '__tapster_is add' -l pid -x -a '(__fish_complete_pids)' -d 'release it when this process has ended and no process has it open'
complete -c tapster -n '__tapster_is add' -l id -d 'print the lease id alone'
complete -c tapster -n '__tapster_is add' -l format -x -d 'print this, as with ls: \'{name} {id}\''
complete -c tapster -n '__tapster_is add set take' -l json -d 'print the lease as JSON'
complete -c tapster -n '__tapster_is rm ls show reap watch' -l owner -x -d 'of this owner (a pattern)'
complete -c tapster -n '__tapster_is rm ls show reap watch' -l bridge -x -a '(__tapster_names type bridge)' -d 'on this bridge or lower device'
complete -c tapster -n '__tapster_is rm ls show reap watch' -l state -x -a 'reserved active fin_wait' -d 'in this state'
complete -c tapster -n '__tapster_is rm ls show reap watch' -l netns -x -a '(__tapster_netns)' -d 'in this network namespace'
complete -c tapster -n '__tapster_is rm ls show reap watch' -l label -x -d 'with this label; may be given several times'
complete -c tapster -n '__tapster_is rm' -l all -d 'release every lease'
complete -c tapster -n '__tapster_is rm' -l ignore-missing -d 'succeed although a NAME or ID has no lease'
complete -c tapster -n '__tapster_is rm' -l dry-run -d 'only print the names it would release'
complete -c tapster -n '__tapster_is rm set take open reap' -a '(__tapster_changed)'
complete -c tapster -n '__tapster_is ls' -s a -l all -d 'also those released, in FIN WAIT'
complete -c tapster -n '__tapster_is ls' -l sort -x -a 'age name owner state on' -d 'the order; default: oldest first'
complete -c tapster -n '__tapster_is ls' -s q -l quiet -d 'print names alone, one a line'
complete -c tapster -n '__tapster_is ls' -l id -d 'print lease ids alone, one a line'
complete -c tapster -n '__tapster_is ls' -l format -x -d 'print this for each lease, with {field} as named by --json'
complete -c tapster -n '__tapster_is ls show who events recover doctor' -l json -d 'print JSON'
complete -c tapster -n '__tapster_is ls show watch' -a '(__tapster_leased; __tapster_ids)'
complete -c tapster -n '__tapster_is set take open' -l owner -x -d 'the owner of the lease, if it has one'
complete -c tapster -n '__tapster_is set take open' -l netns -x -a '(__tapster_netns)' -d 'look for the name in this network namespace first'
complete -c tapster -n '__tapster_is who' -l owner -x -d 'the leases of this owner'
complete -c tapster -n '__tapster_is who' -l mac -x -d 'the leases with this MAC of the guest'
complete -c tapster -n '__tapster_is who' -l lease -x -d 'the lease with this id'
complete -c tapster -n '__tapster_is who' -l label -x -d 'the leases with this label'
complete -c tapster -n '__tapster_is who' -l at -x -d 'only at this time'
complete -c tapster -n '__tapster_is who events report' -l since -x -d 'only from this time on'
complete -c tapster -n '__tapster_is who events report' -l until -x -d 'only up to this time'
complete -c tapster -n '__tapster_is who' -l limit -x -d 'at most N entries, the latest; default: 1000'
complete -c tapster -n '__tapster_is who events' -a '(__tapster_leased)'
complete -c tapster -n '__tapster_is events' -l event -x -a 'refused lost held moved renamed down changed sound repaired set reopened' -d 'one of refused, lost, held, moved, renamed, down, changed, sound, repaired, set, reopened'
complete -c tapster -n '__tapster_is events' -l owner -x -d 'events of leases of this owner'
complete -c tapster -n '__tapster_is events' -l lease -x -d 'events of the lease with this id'
complete -c tapster -n '__tapster_is events' -l limit -x -d 'at most N events, the latest; default: 1000'
complete -c tapster -n '__tapster_is report' -s o -l output -r -F -d 'write to FILE; default: standard output'
complete -c tapster -n '__tapster_is report' -l limit -x -d 'at most N leases, the latest; default: 10000'
complete -c tapster -n '__tapster_is run' -l nic -x -a '(__tapster_nic)' -d 'a device, by the options below without dashes: bridge=br0,queues=2'
complete -c tapster -n '__tapster_is run' -l netns -x -a '(__tapster_netns)' -d 'create the devices in this network namespace'
complete -c tapster -n '__tapster_is run' -l template -x -d 'fill in the file IN as OUT, for as long as COMMAND runs'
complete -c tapster -n '__tapster_is run' -l wait-forwarding -d 'start COMMAND only when the bridges forward frames of its devices, which takes a while with a spanning tree; wait for at most TIME; default: 60s'
complete -c tapster -n '__tapster_is reap' -l now -d 'end every FIN WAIT at this moment'
complete -c tapster -n '__tapster_is recover' -l dry-run -d 'only print the repairs'
complete -c tapster -n '__tapster_is doctor' -l remove -x -d 'delete the devices that carry the stamp of this lost ledger'
complete -c tapster -n '__tapster_is doctor' -l user -x -a '(__fish_complete_users)' -d 'only print what the daemon\'s policy allows USER'
complete -c tapster -n '__tapster_is doctor' -l config -r -F -d 'with --user: the policy to explain; default: the daemon\'s'
complete -c tapster -n '__tapster_is fleet' -l config -r -F -d 'the configuration; default: /etc/tapster/tapster.toml'
complete -c tapster -n '__tapster_is fleet' -a 'init join leave sync epoch ls hosts who where doctor fence forget evict'
complete -c tapster -n '__tapster_is libvirt' -a 'install uninstall adopt release attach detach ls hook'
complete -c tapster -n '__tapster_is install-service' -l remove -d 'remove what this verb placed'
complete -c tapster -n '__tapster_is install-service' -l dry-run -d 'only say which files it would write'
complete -c tapster -n '__tapster_is watch' -l json -d 'print a line of JSON for each event'
complete -c tapster -n '__tapster_is top' -l interval -x -d 'the time between two screens; default: 1s'
complete -c tapster -n '__tapster_is top' -l count -x -d 'end after N screens'
complete -c tapster -n '__tapster_is top' -l sort -x -a 'age name owner state on' -d 'the order of leases; default: latest first'
