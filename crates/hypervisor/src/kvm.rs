//! Can guests run on this processor, or do they have to be emulated?
//!
//! `/dev/kvm` alone proves nothing: on some nested hosts it exists, opens, and even makes a machine in which an ordinary
//! guest then hangs. What such hosts lack is the processor flag, so the probe wants all of it: the device, permission to
//! open it, the one API version there is, and `vmx` or `svm`.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// `_IO(0xAE, 0x00)` of linux/kvm.h.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
/// The only version since Linux 2.6.22; user space is told to refuse any other.
const KVM_API_VERSION: i32 = 12;

/// The answer of [`probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmProbe {
    /// Whether guests can use KVM here.
    pub usable: bool,
    /// Why, or why not, in words for a condition's message.
    pub reason: String,
}

/// Asks this machine, with the permissions of the calling process.
pub fn probe() -> KvmProbe {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(
        ask_device(Path::new("/dev/kvm")),
        &cpuinfo,
        std::env::consts::ARCH,
    )
}

/// Opens the device and asks for its API version.
fn ask_device(path: &Path) -> Result<i32, String> {
    let fd =
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            match error {
                Errno::NOENT => format!("{} does not exist", path.display()),
                Errno::ACCESS | Errno::PERM => {
                    format!("{} cannot be opened: permission denied", path.display())
                }
                other => format!("{} cannot be opened: {other}", path.display()),
            }
        })?;
    api_version(&fd).map_err(|error| format!("{} does not answer as KVM: {error}", path.display()))
}

fn api_version(fd: &OwnedFd) -> std::io::Result<i32> {
    // SAFETY: the request takes no argument and touches no memory of ours; a device that is not KVM answers ENOTTY.
    let version = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    if version < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(version)
    }
}

fn judge(device: Result<i32, String>, cpuinfo: &str, arch: &str) -> KvmProbe {
    let no = |reason: String| KvmProbe {
        usable: false,
        reason,
    };
    let version = match device {
        Ok(version) => version,
        Err(reason) => return no(reason),
    };
    if version != KVM_API_VERSION {
        return no(format!(
            "/dev/kvm speaks API version {version}, not {KVM_API_VERSION}"
        ));
    }
    if arch != "x86_64" {
        return KvmProbe {
            usable: true,
            reason: "/dev/kvm works".to_owned(),
        };
    }
    match virtualization_flag(cpuinfo) {
        Some(flag) => KvmProbe {
            usable: true,
            reason: format!("/dev/kvm works and the processor has {flag}"),
        },
        None => no(
            "/dev/kvm exists, but /proc/cpuinfo shows neither vmx nor svm: guests would hang"
                .to_owned(),
        ),
    }
}

fn virtualization_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("flags")
                .and_then(|rest| rest.split_once(':'))
        })?
        .1;
    ["vmx", "svm"]
        .into_iter()
        .find(|wanted| flags.split_ascii_whitespace().any(|flag| flag == *wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vme vmx ssse3\nbugs\t\t: vmx_fake\n";
    const NESTED: &str = "processor\t: 0\nflags\t\t: fpu vme ssse3\nvmx flags\t: vnmi\n";

    #[test]
    fn every_part_is_needed() {
        for (device, cpuinfo, arch, usable, word) in [
            (Ok(12), INTEL, "x86_64", true, "vmx"),
            (Ok(12), "flags : a svm", "x86_64", true, "svm"),
            (Ok(12), NESTED, "x86_64", false, "neither vmx nor svm"),
            (Ok(12), "", "x86_64", false, "neither vmx nor svm"),
            (Ok(12), "Features : fp", "aarch64", true, "works"),
            (Ok(11), INTEL, "x86_64", false, "version 11"),
            (
                Err("/dev/kvm does not exist".to_owned()),
                INTEL,
                "x86_64",
                false,
                "does not exist",
            ),
        ] {
            let answer = judge(device, cpuinfo, arch);
            assert_eq!(answer.usable, usable, "{answer:?}");
            assert!(
                answer.reason.contains(word),
                "{answer:?} does not say {word}"
            );
        }
    }

    #[test]
    fn what_is_not_kvm_is_named() {
        assert!(
            ask_device(Path::new("/dev/null"))
                .unwrap_err()
                .contains("does not answer as KVM")
        );
        assert!(
            ask_device(Path::new("/dev/kvm-of-nobody"))
                .unwrap_err()
                .contains("does not exist")
        );
    }

    #[test]
    fn this_machine_is_never_believed_without_the_flag() {
        let flag =
            virtualization_flag(&std::fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo"));
        let answer = probe();
        assert!(
            !answer.usable || flag.is_some() || cfg!(not(target_arch = "x86_64")),
            "{answer:?}"
        );
        assert!(!answer.reason.is_empty());
    }
}
