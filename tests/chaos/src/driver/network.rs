//! A network of its own for a cluster: a namespace for each member, joined by a bridge, and rules that lose packets
//! between two of them in one direction or both. Needs root, iproute2 and nftables.
//!
//! Taken away when dropped, also in a panic; what a run left that was killed is taken away by the next one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::{Cut, Member, tools};
use crate::ChaosError;

/// Beginning of the names of everything that is made here.
const PREFIX: &str = "twch";
/// The host's end of the network.
const HOST: u8 = 254;

/// The namespaces of a cluster.
#[derive(Debug)]
pub struct Network {
    tag: String,
    subnet: [u8; 3],
    /// Namespaces by the last byte of their address.
    namespaces: BTreeMap<u8, String>,
    members: BTreeMap<Member, u8>,
}

impl Network {
    /// Says what is missing to make a network here.
    ///
    /// # Errors
    /// What, and what to do.
    pub fn possible() -> Result<(), String> {
        if !tools::is_root() {
            return Err("network namespaces need root: run it as root".into());
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            if tools::find(program).is_none() {
                return Err(format!("`{program}` is not installed: `apt-get install {package}`"));
            }
        }
        Ok(())
    }

    /// Makes the network: a namespace for each node, one for gateway 1, and companions (gateway 1 + i) that live in the
    /// namespace of node i.
    ///
    /// # Errors
    /// When the system refuses; what was made until then is taken away.
    pub async fn new(nodes: u8) -> Result<Self, ChaosError> {
        remove_leftovers().await?;
        let id = std::process::id();
        let [.., high, low] = id.to_be_bytes();
        // Somewhere in 10/8, a different place for each process that runs at the same time.
        let subnet = [10, 128 | high, low];
        let mut network = Self {
            tag: format!("{PREFIX}{id}"),
            subnet,
            namespaces: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        network.build(nodes).await?;
        Ok(network)
    }

    async fn build(&mut self, nodes: u8) -> Result<(), ChaosError> {
        let bridge = self.tag.clone();
        ip(&format!("link add {bridge} type bridge")).await?;
        ip(&format!("addr add {}/24 dev {bridge}", self.address(HOST))).await?;
        ip(&format!("link set {bridge} up")).await?;
        for last in 1..=nodes + 1 {
            let namespace = format!("{bridge}-{last}");
            ip(&format!("netns add {namespace}")).await?;
            self.namespaces.insert(last, namespace.clone());
            ip(&format!("link add {bridge}v{last} type veth peer name eth0 netns {namespace}")).await?;
            ip(&format!("link set {bridge}v{last} master {bridge} up")).await?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", self.address(last))).await?;
            ip(&format!("-n {namespace} link set eth0 up")).await?;
            ip(&format!("-n {namespace} link set lo up")).await?;
            self.nft(last, "add table inet chaos").await?;
            self.nft(last, "add chain inet chaos lost { type filter hook input priority 0 ; }").await?;
            if last <= nodes {
                self.members.insert(Member::Node(u64::from(last)), last);
                self.members.insert(Member::Gateway(1 + u64::from(last)), last);
            } else {
                self.members.insert(Member::Gateway(1), last);
            }
        }
        Ok(())
    }

    fn address(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.subnet;
        IpAddr::V4(Ipv4Addr::new(a, b, c, last))
    }

    /// Where a member lives.
    pub fn address_of(&self, member: Member) -> Option<IpAddr> {
        self.members.get(&member).map(|last| self.address(*last))
    }

    /// What to put in front of a command so that it runs where a member lives.
    pub fn enter(&self, member: Member) -> Vec<OsString> {
        let namespace = self.members.get(&member).and_then(|last| self.namespaces.get(last));
        namespace.map_or_else(Vec::new, |namespace| {
            ["ip", "netns", "exec", namespace].map(OsString::from).to_vec()
        })
    }

    /// Loses packets.
    ///
    /// # Errors
    /// When nft refuses.
    pub async fn cut(&self, cuts: &[Cut]) -> Result<(), ChaosError> {
        for cut in cuts {
            for to in &cut.to {
                for from in &cut.from {
                    let (Some(target), Some(source)) = (self.members.get(to), self.address_of(*from)) else {
                        continue;
                    };
                    // Who lives at one place is never cut off from himself.
                    if source != self.address(*target) {
                        self.nft(*target, &format!("add rule inet chaos lost ip saddr {source} drop"))
                            .await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Loses nothing any more.
    ///
    /// # Errors
    /// When nft refuses.
    pub async fn heal(&self) -> Result<(), ChaosError> {
        for last in self.namespaces.keys() {
            self.nft(*last, "flush chain inet chaos lost").await?;
        }
        Ok(())
    }

    async fn nft(&self, last: u8, rule: &str) -> Result<(), ChaosError> {
        let namespace = self.namespaces.get(&last).map(String::as_str).unwrap_or_default();
        ip(&format!("netns exec {namespace} nft {rule}")).await
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let remove = |arguments: &[&str]| {
            let done = std::process::Command::new("ip").args(arguments).status();
            if !done.is_ok_and(|status| status.success()) {
                tracing::error!("`ip {}` failed: do it by hand", arguments.join(" "));
            }
        };
        for namespace in self.namespaces.values() {
            remove(&["netns", "del", namespace]);
        }
        remove(&["link", "del", &self.tag]);
    }
}

async fn ip(arguments: &str) -> Result<(), ChaosError> {
    let words: Vec<&str> = arguments.split(' ').collect();
    tools::run("ip", &words).await.map(drop)
}

/// Removes what runs left whose process is gone.
async fn remove_leftovers() -> Result<(), ChaosError> {
    let names = tools::run("ip", &["netns", "list"]).await?;
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| owner(name).is_some_and(is_gone)) {
        ip(&format!("netns del {name}")).await?;
    }
    let links = tools::run("ip", &["-o", "link", "show", "type", "bridge"]).await?;
    let links = links.lines().filter_map(|line| line.split(": ").nth(1));
    for name in links.filter(|name| owner(name).is_some_and(is_gone)) {
        ip(&format!("link del {name}")).await?;
    }
    Ok(())
}

/// The process that a name was made for.
fn owner(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(PREFIX)?;
    digits.split('-').next()?.parse().ok()
}

fn is_gone(process: u32) -> bool {
    !Path::new(&format!("/proc/{process}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        assert_eq!(owner("twch123-4"), Some(123));
        assert_eq!(owner("twch77"), Some(77));
        assert_eq!(owner("docker0"), None);
        assert_eq!(owner("twchx-1"), None);
        assert!(!is_gone(std::process::id()));
    }
}
