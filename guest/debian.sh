#!/bin/bash
# Builds a whole Debian 12 as a guest: systemd, cloud-init, sshd and QEMU's agent, on a disk that BIOS and UEFI start.
#
# usage: guest/debian.sh OUT.qcow2
#
# Needs root and the Debian packages mmdebstrap, e2fsprogs, fdisk, syslinux, syslinux-efi, syslinux-common, mtools, dosfstools and
# qemu-utils. It takes a minute or two and some 600 MB of downloads' worth of packages. An image that is newer than this script is
# left alone.
set -euo pipefail

out=${1:?usage: guest/debian.sh OUT.qcow2}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/boot.sh"
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
if [ -s "$out" ] && [ "$out" -nt "$here/debian.sh" ]; then
    echo "guest: $out is up to date"
    exit 0
fi

work=$(mktemp -d "$(dirname "$out")/debian.XXXXXX")
trap 'rm -rf "$work"' EXIT
packages=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,systemd-resolved,udev,dbus,cloud-init,openssh-server,qemu-guest-agent,sudo,iproute2,iputils-ping,zstd
echo "guest: a Debian with $packages"
# The sources of this machine, so that a mirror that it uses is used here, too; without them Debian's own.
sources=()
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ ! -s "$file" ] || [ ${#sources[@]} -gt 0 ] || sources=("$file")
done
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='printf "LABEL=root / ext4 errors=remount-ro 0 1\n" >"$1/etc/fstab"' \
    --customize-hook='printf "debian\n" >"$1/etc/hostname"' \
    --customize-hook='printf "datasource_list: [NoCloud, ConfigDrive, None]\n" >"$1/etc/cloud/cloud.cfg.d/90_berth.cfg"' \
    --customize-hook='printf "locale: false\nsystem_info:\n  network:\n    renderers: [networkd]\n" >>"$1/etc/cloud/cloud.cfg.d/90_berth.cfg"' \
    --customize-hook='chroot "$1" systemctl enable -q systemd-networkd ssh' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id; : >"$1/etc/machine-id"' \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
    bookworm "$work/root" "${sources[@]}" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

# One partition that both kinds of firmware read, one for the system.
boot_mib=96
used=$(du -sm "$work/root" | cut -f1)
root_mib=$((used + used / 4 + 200))
truncate -s "$((boot_mib + root_mib + 2))M" "$work/disk.raw"
sfdisk --quiet "$work/disk.raw" <<LAYOUT
label: dos
start=1MiB, size=${boot_mib}MiB, type=ef, bootable
start=$((boot_mib + 1))MiB, size=${root_mib}MiB, type=83
LAYOUT
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk.raw" conv=notrunc status=none
mkfs.vfat -n BOOT -C "$work/boot.raw" $((boot_mib * 1024)) >/dev/null
cat >"$work/syslinux.cfg" <<'CFG'
SERIAL 0 115200
DEFAULT debian
PROMPT 0
LABEL debian
  KERNEL /vmlinuz
  APPEND initrd=/initrd.img root=LABEL=root ro console=ttyS0,115200 net.ifnames=0 mitigations=off tsc=reliable random.trust_cpu=on quiet
CFG
mcopy -i "$work/boot.raw" "$work"/root/boot/vmlinuz-* ::vmlinuz
mcopy -i "$work/boot.raw" "$work"/root/boot/initrd.img-* ::initrd.img
install_boot_loader "$work/boot.raw" "$work/syslinux.cfg"
rm -f "$work"/root/boot/{vmlinuz,initrd.img}-*
mke2fs -q -t ext4 -L root -d "$work/root" -E "offset=$(((boot_mib + 1) << 20))" "$work/disk.raw" "${root_mib}M"
dd if="$work/boot.raw" of="$work/disk.raw" bs=1M seek=1 conv=notrunc status=none
qemu-img convert -q -c -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
chmod 644 "$work/disk.qcow2"
mv "$work/disk.qcow2" "$out"
echo "guest: built $out ($(($(stat -c %s "$out") >> 20)) MiB)"
