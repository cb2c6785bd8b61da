//! Where webhooks may go. Whoever can have this gateway call an address of its choice must not reach with it what only this
//! gateway can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use url::{Host, Url};

/// A network: an address and how many bits of it count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: write it as 10.1.0.0/16 or fd00::/8")]
pub struct NotANetwork(String);

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        // What only wraps IPv4 is written as IPv4, or it would match nothing.
        let wraps = unwrapped(address) != address;
        if bits > most || wraps { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        let bits = u32::from(self.bits);
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                u32::from(net) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                u128::from(net) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

/// An address as IPv4 where IPv6 only wraps it.
fn unwrapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Whether an address is one of the public internet, by the registries of special-purpose addresses (RFC 6890 and its successors).
fn is_public(address: IpAddr) -> bool {
    match unwrapped(address) {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    const SPECIAL: [(Ipv4Addr, u8); 14] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        // Multicast, reserved, broadcast.
        (Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    !SPECIAL.iter().any(|(net, bits)| Network { address: (*net).into(), bits: *bits }.has(v4.into()))
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    /// What is routed at all, and what of it is not, or leads on to IPv4.
    const ROUTED: (u128, u8) = (0x2000 << 112, 3);
    const SPECIAL: [(u128, u8); 4] =
        [(0x2001 << 112, 23), (0x2001_0db8 << 96, 32), (0x2002 << 112, 16), (0x3fff << 112, 20)];
    let is_of =
        |(net, bits): (u128, u8)| Network { address: Ipv6Addr::from(net).into(), bits }.has(v6.into());
    is_of(ROUTED) && !SPECIAL.into_iter().any(is_of)
}

/// Whether a webhook may call an address, over TLS or not. `allowed` names networks that are not public and may be called all the
/// same, without TLS too.
pub(crate) fn may_call(address: IpAddr, tls: bool, allowed: &[Network]) -> bool {
    allowed.iter().any(|network| network.has(unwrapped(address))) || (tls && is_public(address))
}

/// Checks an address of a webhook, as far as that can be known before it is called.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_url(text: &str, allowed: &[Network]) -> Result<Url, String> {
    const BYTES_MAX: usize = 2_048;
    if text.len() > BYTES_MAX {
        return Err(format!("has more than {BYTES_MAX} bytes"));
    }
    let url = Url::parse(text).map_err(|why| format!("is no URL: {why}"))?;
    let tls = match url.scheme() {
        "https" => true,
        "http" if !allowed.is_empty() => false,
        _ => return Err("must begin with https://".into()),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or password: leave them out, deliveries are signed".into());
    }
    if url.fragment().is_some() {
        return Err("has a fragment (#), which no server is told".into());
    }
    if url.port() == Some(0) {
        return Err("has port 0".into());
    }
    let address = match url.host() {
        None => return Err("has no host".into()),
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
        Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
    };
    if address.is_some_and(|address| !may_call(address, tls, allowed)) {
        return Err("is not an address of the public internet".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_public_addresses_are_called() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "223.255.255.255",
        ];
        let private = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
        ];
        for text in public {
            assert!(may_call(text.parse().unwrap(), true, &[]), "{text}");
            assert!(!may_call(text.parse().unwrap(), false, &[]), "{text} without TLS");
        }
        for text in private {
            assert!(!may_call(text.parse().unwrap(), true, &[]), "{text}");
        }
        let allowed = ["127.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for text in ["127.0.0.1", "::ffff:127.9.9.9", "fd12::1"] {
            assert!(may_call(text.parse().unwrap(), false, &allowed), "{text}");
        }
        assert!(!may_call("10.0.0.1".parse().unwrap(), true, &allowed));
    }

    #[test]
    fn an_address_is_checked_before_it_is_kept() {
        let sound = |text: &str| check_url(text, &[]).map(drop);
        sound("https://shop.example/hooks?x=1").unwrap();
        sound("https://1.1.1.1:8443/").unwrap();
        for (text, why) in [
            ("http://shop.example/", "https"),
            ("ftp://shop.example/", "https"),
            ("https://me:secret@shop.example/", "password"),
            ("https://shop.example/#top", "fragment"),
            ("https://127.0.0.1/", "public"),
            ("https://0x7f.1/", "public"),
            ("https://2130706433/", "public"),
            ("https://[::ffff:169.254.169.254]/", "public"),
            ("https://shop.example:0/", "port"),
            ("/hooks", "no URL"),
        ] {
            let told = sound(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
        let long = format!("https://shop.example/{}", "x".repeat(2_048));
        assert!(sound(&long).is_err());
        let allowed = ["127.0.0.0/8".parse().unwrap()];
        check_url("http://127.0.0.1:8080/", &allowed).unwrap();
        assert!(check_url("http://10.0.0.1/", &allowed).is_err());
    }

    #[test]
    fn networks_are_read_strictly() {
        for text in ["127.0.0.1", "127.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1", "::ffff:10.0.0.0/104", ""] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.has("9.9.9.9".parse().unwrap()) && !all.has("::1".parse().unwrap()));
    }
}
