#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Process 1 of a host that boots without systemd and udev, in a third of the time. The
# initramfs has mounted /proc, /run and /sys; without udev it leaves out /dev.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir /run/lock
for module in virtio_console tun bridge; do modprobe $module; done
mkdir /dev/virtio-ports
# Rules of udev do these two. The port appears when QEMU has answered the driver.
until test -e /dev/vport*p1; do sleep 0.1; done
ln -s /dev/vport*p1 /dev/virtio-ports/lab
chmod 666 /dev/net/tun
ip link set lo up
python3 -IS /usr/local/lib/lab/agent.py &
wait # which reaps the orphans of the host, too
