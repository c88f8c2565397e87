#!/bin/busybox sh
# PID 1 of the guest. Its configuration was written beside it by the host:
# BUSYBOX, PYTHON, AGENT, CONTROL, ACK, MODULES, DEVICE_WAIT and the environment.
. "${0%/*}/config"
$BUSYBOX mount -t proc proc /proc 2>/dev/null
$BUSYBOX mount -t sysfs sysfs /sys 2>/dev/null
[ -c /dev/null ] || $BUSYBOX mount -t devtmpfs devtmpfs /dev
echo guest > /proc/sys/kernel/hostname
[ -d /dev/pts ] || $BUSYBOX mkdir -p /dev/pts /dev/shm
$BUSYBOX mount -t devpts devpts /dev/pts
$BUSYBOX mount -t tmpfs tmpfs /run
$BUSYBOX mkdir -p "$TMPDIR"
$BUSYBOX ip link set lo up
for module in $MODULES; do
  $BUSYBOX insmod "$module" || echo "insmod $module failed"
done
tries=0
while [ ! -c "$CONTROL" ]; do
  tries=$((tries + 1))
  [ $tries -lt 1000 ] || break
  $BUSYBOX usleep 10000
done
cd "$DIRECTORY" 2>/dev/null || cd /
"$PYTHON" -I -S -B "$AGENT" "$CONTROL" $ACK
$BUSYBOX sync
$BUSYBOX poweroff -f
