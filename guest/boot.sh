# Sourced by what builds guests: makes a FAT file system with a kernel on it start, by BIOS and by UEFI.
#
# usage: install_boot_loader FAT_IMAGE SYSLINUX_CFG
install_boot_loader() {
    mcopy -i "$1" "$2" ::syslinux.cfg
    syslinux --install "$1"
    mmd -i "$1" ::EFI ::EFI/BOOT
    mcopy -i "$1" /usr/lib/SYSLINUX.EFI/efi64/syslinux.efi ::EFI/BOOT/BOOTX64.EFI
    mcopy -i "$1" /usr/lib/syslinux/modules/efi64/ldlinux.e64 ::EFI/BOOT/ldlinux.e64
    mcopy -i "$1" "$2" ::EFI/BOOT/syslinux.cfg
}
