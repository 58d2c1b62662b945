#!/bin/bash
# Installs what a target of the Makefile needs on Debian 12, and says what it does. What is there already is left alone.
#
# usage: scripts/setup.sh run|test|bench|fuzz|cluster
set -euo pipefail

target=${1:?usage: scripts/setup.sh run|test|bench|fuzz|cluster}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Package and a file that it brings: looking at files is quicker than asking dpkg, and also right where a tool came
# another way (kubectl).
needs=(
    "gcc /usr/bin/gcc"
    "g++ /usr/bin/g++"
    "libc6-dev /usr/include/stdio.h"
    "make /usr/bin/make"
    "pkg-config /usr/bin/pkg-config"
    "cmake /usr/bin/cmake"
    "libvirt-dev /usr/include/libvirt/libvirt.h"
    "libvirt-daemon /usr/sbin/libvirtd"
    "libvirt-daemon-driver-qemu /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
    "qemu-system-x86 /usr/bin/qemu-system-x86_64"
    "qemu-utils /usr/bin/qemu-img"
    "ovmf /usr/share/OVMF/OVMF_CODE_4M.fd"
    "nftables /usr/sbin/nft"
    "iproute2 /usr/sbin/ip /bin/ip"
    "iputils-ping /usr/bin/ping /bin/ping"
    "util-linux /usr/bin/nsenter"
    "mount /usr/sbin/losetup /sbin/losetup"
    "kubernetes-client /usr/bin/kubectl /usr/local/bin/kubectl"
    # The small guest.
    "busybox-static /usr/bin/busybox /bin/busybox"
    "syslinux /usr/bin/syslinux"
    "syslinux-efi /usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"
    "syslinux-common /usr/lib/syslinux/modules/efi64/ldlinux.e64"
    "mtools /usr/bin/mcopy"
    "dosfstools /usr/sbin/mkfs.vfat"
    "cpio /usr/bin/cpio /bin/cpio"
    "kmod /usr/sbin/modprobe /sbin/modprobe"
)
case $target in
run) ;;
test | bench)
    needs+=(
        "ipxe /usr/lib/ipxe/ipxe.iso"
        "docker-registry /usr/bin/docker-registry"
        "skopeo /usr/bin/skopeo"
        "libvirt-clients /usr/bin/virt-xml-validate"
        "libxml2-utils /usr/bin/xmllint"
        "isc-dhcp-client /usr/sbin/dhclient /sbin/dhclient"
        "apache2-utils /usr/bin/htpasswd"
        "curl /usr/bin/curl"
        "python3-venv /usr/lib/python3.11/ensurepip/__init__.py"
        "mmdebstrap /usr/bin/mmdebstrap"
        "e2fsprogs /usr/sbin/mke2fs /sbin/mke2fs"
        "fdisk /usr/sbin/sfdisk /sbin/sfdisk"
        "openssh-client /usr/bin/ssh"
        "xz-utils /usr/bin/xz"
        "zstd /usr/bin/zstd"
        "xfsprogs /usr/sbin/mkfs.xfs /sbin/mkfs.xfs"
    )
    if [ "$target" = bench ]; then
        needs+=(
            "time /usr/bin/time"
            "qemu-block-extra /usr/lib/x86_64-linux-gnu/qemu/block-curl.so"
        )
    fi
    ;;
fuzz) ;;
cluster)
    # Nothing of berth is built here.
    needs=(
        "gcc /usr/bin/gcc"
        "libc6-dev /usr/include/stdio.h"
        "containerd /usr/bin/containerd"
        "runc /usr/sbin/runc /usr/bin/runc"
        "containernetworking-plugins /usr/lib/cni/bridge"
        "nftables /usr/sbin/nft"
        "iproute2 /usr/sbin/ip /bin/ip"
        "iptables /usr/sbin/iptables"
        "conntrack /usr/sbin/conntrack"
        "openssl /usr/bin/openssl"
        "procps /usr/bin/pgrep"
        "python3 /usr/bin/python3"
        "util-linux /usr/bin/nsenter"
        "busybox-static /usr/bin/busybox /bin/busybox"
    )
    ;;
*)
    echo "setup: unknown target $target" >&2
    exit 2
    ;;
esac

missing=()
for need in "${needs[@]}"; do
    read -r package files <<<"$need"
    found=
    for file in $files; do
        [ -e "$file" ] && found=1
    done
    [ -n "$found" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    as_root apt-get -qq update
    # No recommends: they would bring libvirt's system-wide daemon and its network, which berth does not use.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "$target" != cluster ] || exit 0
if [ "$target" != fuzz ] && [ -z "$(apt-cache depends linux-image-cloud-amd64 2>/dev/null)" ] && ! [ -s .cache/guest.qcow2 ]; then
    # The guest's kernel is found through apt's lists.
    as_root apt-get -qq update
fi
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing; install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
fi

# The official Python client, for the conformance suite.
python=.cache/python
wanted=e2e/tests/conformance/python/requirements.txt
if [ "$target" = test ] && ! cmp -s "$wanted" "$python/installed"; then
    echo "setup: installing the Python client of Kubernetes into $python"
    rm -rf "$python"
    mkdir -p .cache
    /usr/bin/python3 -m venv "$python"
    "$python/bin/pip" --quiet --disable-pip-version-check install --requirement "$wanted"
    cp "$wanted" "$python/installed"
fi
