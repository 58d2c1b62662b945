#!/bin/bash
# Builds the small guest: Debian's cloud kernel, an initramfs of busybox and QEMU's guest agent, and the syslinux boot loader
# for BIOS and UEFI in one disk image.
#
# usage: guest/build.sh OUT.qcow2
#
# Needs the Debian packages busybox-static, syslinux, syslinux-efi, syslinux-common, mtools, dosfstools, cpio, kmod, qemu-utils; nothing in it needs
# root. The packages of the kernel and the agent are downloaded with apt and unpacked beside OUT, not installed; the agent's
# libraries are those of this machine, which QEMU brought. An image that is newer than everything
# it is made from is left alone.
set -euo pipefail

out=${1:?usage: guest/build.sh OUT.qcow2}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/boot.sh"
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
cache=$(dirname "$out")/guest-kernel

newest=$(find "$here" -type f -printf '%T@\n' | sort -n | tail -1)
if [ -s "$out" ] && [ "$(stat -c %Y "$out")" -gt "${newest%.*}" ]; then
    echo "guest: $out is up to date"
    exit 0
fi

if ! [ -e "$cache/vmlinuz" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}')
    [ -n "$package" ] || { echo "guest: apt knows no linux-image-cloud-amd64; run apt-get update" >&2; exit 1; }
    echo "guest: downloading $package"
    rm -rf "$cache.new"
    mkdir -p "$cache.new"
    (cd "$cache.new" && apt-get -qq -o APT::Sandbox::User=root download "$package" && dpkg -x ./*.deb root && rm ./*.deb)
    cp "$cache.new"/root/boot/vmlinuz-* "$cache.new/vmlinuz"
    rm -rf "$cache"
    mv "$cache.new" "$cache"
fi
agent=$(dirname "$out")/guest-agent
if ! [ -e "$agent/usr/sbin/qemu-ga" ]; then
    echo "guest: downloading qemu-guest-agent"
    rm -rf "$agent.new"
    mkdir -p "$agent.new"
    (cd "$agent.new" && apt-get -qq -o APT::Sandbox::User=root download qemu-guest-agent && dpkg -x ./*.deb . && rm ./*.deb)
    rm -rf "$agent"
    mv "$agent.new" "$agent"
fi
modules=$(echo "$cache"/root/lib/modules/*)
[ -e "$modules/modules.dep" ] || depmod -b "$cache/root" "$(basename "$modules")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,etc/acpi/PWRF,lib/modules,proc,root,run,sbin,sys,tmp,usr/sbin,var,www}
ln -s ../run "$root/var/run"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
install -m 755 "$here/init" "$root/init"
install -m 755 "$here/udhcpc.script" "$root/etc/udhcpc.script"
install -m 755 "$here/login-root" "$root/bin/login-root"
# The agent, what it is linked with, and what it runs to end the guest.
install -m 755 "$agent/usr/sbin/qemu-ga" "$root/usr/sbin/qemu-ga"
ldd "$root/usr/sbin/qemu-ga" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$library" "$root$library"
done
install -m 755 "$here/shutdown" "$root/sbin/shutdown"
printf 'ID=berth-guest\nNAME="Small guest"\nPRETTY_NAME="Small guest 1"\nVERSION_ID="1"\n' >"$root/etc/os-release"
printf 'root::0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root::1::::::\n' >"$root/etc/shadow"
printf 'root:x:0:\n' >"$root/etc/group"
printf '#!/bin/sh\necho "power button: shutting down" >/dev/ttyS0\nsync\npoweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/acpi/PWRF/00000080"
echo 'hello from the guest' >"$root/www/index.html"

# Each module after those it needs; insmod in the guest wants no modules.dep.
: >"$root/lib/modules/order"
for module in virtio_pci virtio_blk virtio_net virtio_console virtio-rng button evdev sr_mod ahci sd_mod e1000 ext4 vfat nls_cp437 nls_ascii nls_iso8859-1; do
    modprobe -d "$cache/root" -S "$(basename "$modules")" --show-depends "$module" 2>/dev/null |
        awk '$1 == "insmod" {print $2}' || true
done | awk '!seen[$0]++' | while read -r path; do
    name=$(basename "$path")
    cp "$path" "$root/lib/modules/$name"
    echo "$name" >>"$root/lib/modules/order"
done

(cd "$root" && find . -print0 | sort -z | cpio --null -o -H newc --quiet -R 0:0 | gzip -6) >"$work/initrd.gz"
# For who starts the kernel without a disk.
cp "$work/initrd.gz" "$cache/initrd.gz"
cat >"$work/syslinux.cfg" <<'CFG'
SERIAL 0 115200
DEFAULT guest
PROMPT 0
LABEL guest
  KERNEL /vmlinuz
  APPEND initrd=/initrd.gz console=ttyS0,115200 loglevel=6 net.ifnames=0 mitigations=off tsc=reliable random.trust_cpu=on panic=5
CFG
mkfs.vfat -n BERTH -C "$work/disk.raw" 49152 >/dev/null
mcopy -i "$work/disk.raw" "$cache/vmlinuz" ::vmlinuz
mcopy -i "$work/disk.raw" "$work/initrd.gz" ::initrd.gz
install_boot_loader "$work/disk.raw" "$work/syslinux.cfg"
qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$out.new"
mv "$out.new" "$out"
echo "guest: built $out ($(stat -c %s "$out") bytes)"
