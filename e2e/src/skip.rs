//! What a test needs of the machine, and the one way to skip it.

use std::path::Path;

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root: network namespaces, mounts.
    Root,
    /// QEMU and libvirt.
    Qemu,
    /// The small guest's image.
    SmallGuest,
    /// The ISO of Debian's package `ipxe`.
    Ipxe,
    /// Debian's `docker-registry`, and `htpasswd`.
    Registry,
    /// Debian's `skopeo`.
    Skopeo,
    /// etcd, kube-apiserver and kubectl as `scripts/reference.sh` builds them.
    Reference,
}

impl Need {
    fn lacking(self) -> Option<String> {
        let file = |path: &str, package: &str| {
            (!Path::new(path).exists()).then(|| format!("{path} is missing (package {package})"))
        };
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "not root".to_owned()),
            Self::Qemu => file("/usr/bin/qemu-system-x86_64", "qemu-system-x86")
                .or_else(|| file("/usr/sbin/libvirtd", "libvirt-daemon")),
            Self::SmallGuest => {
                let guest = crate::small_guest();
                (!guest.exists())
                    .then(|| format!("{} is missing (guest/build.sh makes it)", guest.display()))
            }
            Self::Ipxe => file("/usr/lib/ipxe/ipxe.iso", "ipxe"),
            Self::Registry => file("/usr/bin/docker-registry", "docker-registry")
                .or_else(|| file("/usr/bin/htpasswd", "apache2-utils")),
            Self::Skopeo => file("/usr/bin/skopeo", "skopeo"),
            Self::Reference => ["etcd", "kube-apiserver", "kubectl"]
                .map(crate::reference_program)
                .into_iter()
                .find(|program| !program.exists())
                .map(|program| {
                    format!(
                        "{} is missing (make reference builds it)",
                        program.display()
                    )
                }),
        }
    }
}

/// Whether the machine lacks something a test needs. Says so in a line that `make test` counts: a test that returns early
/// because of it is a skipped test, not a passed one.
pub fn missing(test: &str, needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.lacking()) else {
        return false;
    };
    berth_testing::skip(test, &reason);
    true
}
