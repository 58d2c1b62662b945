//! Which address a pod gets.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The addresses of a pod network. Which of them are in use is the caller's knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    network: u32,
    prefix: u8,
    gateway: Ipv4Addr,
}

/// Every address is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free address in {network}/{prefix}: all {size} are in use")]
pub struct Exhausted {
    /// The network.
    pub network: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// How many addresses it gives out.
    pub size: u32,
}

impl Pool {
    /// The network that `gateway` with `prefix` lies in.
    #[must_use]
    pub fn new(gateway: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(prefix.min(32)))
            .unwrap_or(0);
        Self {
            network: gateway.to_bits() & mask,
            prefix,
            gateway,
        }
    }

    /// The lowest free address; never the network's own, the gateway's or the broadcast address.
    ///
    /// # Errors
    /// When every address is in use.
    pub fn allocate(&self, in_use: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Exhausted> {
        let broadcast = self.network | u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        (self.network + 1..broadcast)
            .map(Ipv4Addr::from_bits)
            .find(|address| *address != self.gateway && !in_use.contains(address))
            .ok_or(Exhausted {
                network: Ipv4Addr::from_bits(self.network),
                prefix: self.prefix,
                size: broadcast.saturating_sub(self.network + 2),
            })
    }

    /// Whether the network holds the address.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Self::new(address, self.prefix).network == self.network
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::Pool;

    #[test]
    fn lowest_free_first_and_never_the_special_ones() {
        let pool = Pool::new(Ipv4Addr::new(10, 0, 0, 1), 29);
        let mut in_use = BTreeSet::new();
        for last in 2..=6 {
            let address = pool.allocate(&in_use).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 0, 0, last));
            in_use.insert(address);
        }
        let error = pool.allocate(&in_use).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free address in 10.0.0.0/29: all 5 are in use"
        );
        in_use.remove(&Ipv4Addr::new(10, 0, 0, 4));
        assert_eq!(pool.allocate(&in_use).unwrap(), Ipv4Addr::new(10, 0, 0, 4));
        assert!(
            pool.contains(Ipv4Addr::new(10, 0, 0, 6)) && !pool.contains(Ipv4Addr::new(10, 0, 0, 9))
        );
    }
}
