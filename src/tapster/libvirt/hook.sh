#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# libvirt's hook for QEMU domains: gives them the devices that Tapster makes.
# `tapster libvirt install` wrote this file, `tapster libvirt uninstall` removes it.
# libvirt calls it as: qemu DOMAIN PHASE begin|end EXTRA, with the XML as input.

case $2 in
    migrate | prepare | start | started | reconnect | release) ;;
    *) exit 0 ;;
esac

# Most domains are not Tapster's: find out before Python starts. libvirt writes the
# metadata before the memory. The shell itself reads up to there, because cat would be
# another process.
xml= inside=
while IFS= read -r line || [ "$line" ]; do
    xml="$xml$line
"
    case $line in
        *urn:tapster:libvirt:1*) break ;;
        *'<metadata'*'metadata>'*) break ;;
        *'<metadata/>'*) ;;
        *'<metadata'*)
            [ -z "$inside" ] || break
            inside=yes
            ;;
        *'</metadata>'*) exit 0 ;;
        *'<memory'*) [ "$inside" ] || exit 0 ;;
    esac
done
xml=$xml$(cat)
case $xml in
    *urn:tapster:libvirt:1*) ;;
    *) exit 0 ;;
esac

# The command is called through env(1), because libvirtd's AppArmor profile lets a hook
# start only what is in /usr/bin, and Tapster may be elsewhere.
case $2 in
    started | reconnect)
        # libvirt kills the VM if its hook fails in these phases.
        said=$(
            /usr/bin/env @TAPSTER@ libvirt hook "$@" 2>&1 <<XML
$xml
XML
        ) || logger -t tapster -- "libvirt hook, $1, $2: $said"
        exit 0
        ;;
esac

# In this process: libvirt is then the parent of the command.
exec /usr/bin/env @TAPSTER@ libvirt hook "$@" <<XML
$xml
XML
