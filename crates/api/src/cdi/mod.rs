//! The API group `cdi.kubevirt.io`: how volumes are filled.

pub mod importer;
pub mod v1beta1;

/// The group.
pub const GROUP: &str = "cdi.kubevirt.io";
/// Annotation of a claim: it is filled, and may be used.
pub const READY: &str = "cdi.kubevirt.io/storage.pod.ready";
/// Annotation of a DataVolume: the pod that filled it stays, for who wants to look at it.
pub const RETAIN: &str = "cdi.kubevirt.io/storage.pod.retainAfterCompletion";
/// What a file system is expected to take of a volume; CDI's default.
pub const OVERHEAD: f64 = 0.06;
const MIB: u64 = 1 << 20;

/// Bytes that a volume with a file system must have for a disk of `bytes`.
#[must_use]
pub fn with_overhead(bytes: u64) -> u64 {
    let whole = bytes.div_ceil(MIB).saturating_mul(MIB);
    // Sizes are far below what a float keeps exactly.
    (whole as f64 * (1.0 + OVERHEAD)).ceil() as u64
}

/// Bytes of a disk that fits on a volume of `bytes` with a file system.
#[must_use]
pub fn usable(bytes: u64) -> u64 {
    let usable = (bytes as f64 / (1.0 + OVERHEAD)).ceil() as u64;
    usable / MIB * MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_cdis() {
        for (asked, volume) in [
            (512 << 20, 569_083_167),
            (1 << 30, 1_138_166_334),
            (10 << 30, 11_381_663_335),
        ] {
            assert_eq!(with_overhead(asked), volume);
            assert_eq!(usable(volume), asked);
        }
        assert_eq!(with_overhead(1), with_overhead(1 << 20));
    }
}
