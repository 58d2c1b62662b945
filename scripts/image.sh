#!/bin/bash
# Makes berth's image for clusters, without a container engine: Debian's packages of libvirt and QEMU with what they need,
# and the berth binary. The same inputs give the same image. An OCI layout in a tar file: `ctr images import`,
# `skopeo copy oci-archive:…`, or scripts/cluster/load.sh for the cluster of `make cluster`.
#
# usage: scripts/image.sh [REFERENCE]   (default localhost/berth:VERSION)
#   BERTH_BINARY   a berth that was built already (default: the release is built)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
reference=${1:-localhost/berth:$version}
out=$PWD/.cache/image
binary=$PWD/${BERTH_BINARY:-target/release/berth}
packages=(libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils ovmf nftables ca-certificates)

scripts/setup.sh run
[ -n "${BERTH_BINARY:-}" ] || cargo build --release --locked --bin berth
mkdir -p "$out/debs/partial"
stamp=$(sha256sum scripts/image.sh scripts/cluster/image.py scripts/cluster/pause.c "$binary" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp $reference" ]; then
    echo "image: $out/berth.tar is up to date"
    exit 0
fi

step "packages: ${packages[*]}"
# As if nothing were installed, so that everything they need comes along.
: >"$out/status"
apt-get -qq -y --no-install-recommends --download-only -o Dir::State::status="$out/status" \
    -o Dir::Cache::archives="$out/debs" -o Debug::NoLocking=1 -o APT::Sandbox::User=root install "${packages[@]}" >/dev/null

step "the root"
root=$out/root
rm -rf "$root"
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
for deb in "$out"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$root"
done
# Nobody reads or runs this in a launcher: other machines' firmware, documentation, translations, tools of packaging.
(cd "$root" && rm -rf usr/share/{doc,man,locale,info,lintian,bash-completion,bug,perl,perl5,i18n,zoneinfo,icons,applications} \
    usr/share/qemu/{edk2-aarch64*,edk2-arm*,edk2-loongarch*,edk2-riscv*,hppa*,openbios*,opensbi*,palcode*,s390*,skiboot*,slof*,u-boot*} \
    usr/lib/systemd usr/lib/udev usr/lib/x86_64-linux-gnu/perl* usr/lib/x86_64-linux-gnu/gconv \
    var/cache/* var/lib/{apt,dpkg} etc/{init.d,cron*,logrotate.d,systemd} \
    usr/share/{ovmf,OVMF/{OVMF_CODE.*,OVMF_VARS.*,*.snakeoil.*}})
# What its package makes when it is installed.
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
install -s -m 755 "$binary" "$root/usr/bin/berth"
gcc -O2 -static -s -o "$root/usr/bin/berth-hold" scripts/cluster/pause.c
mkdir -p "$root"/{proc,sys,dev,tmp,root,run/berth,run/berth-disks,var/lib/berth}
ln -sfn ../run "$root/var/run"
chmod 1777 "$root/tmp"
cat >"$root/etc/passwd" <<PASSWD
root:x:0:0:root:/root:/usr/sbin/nologin
qemu:x:107:107:qemu:/var/run/berth:/usr/sbin/nologin
berth:x:1001:1001:berth:/:/usr/sbin/nologin
PASSWD
printf 'root:x:0:\ntty:x:5:\nqemu:x:107:\nberth:x:1001:\n' >"$root/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
ldconfig -r "$root"
# It has the times of files in it.
rm -f "$root/var/cache/ldconfig/aux-cache"

step "packing $reference"
tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$out/layer.tar" .
python3 scripts/cluster/image.py "$reference" "$out/berth.tar" /usr/bin/berth "$out/layer.tar"
rm -f "$out/layer.tar"
echo "$stamp $reference" >"$out/stamp"
echo "image: $out/berth.tar, $(($(stat -c %s "$out/berth.tar") >> 20)) MiB packed, $(du -sm "$root" | cut -f1) MiB on a node"
