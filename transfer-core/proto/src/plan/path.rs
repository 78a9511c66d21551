//! Which path a transfer takes, and why not the others.

use alloc::vec::Vec;
use core::fmt;

/// A way for bytes to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Path {
    /// The peer's memory is mapped here: one copy at memory speed, without the peer's help.
    SharedMemory,
    /// The kernel copies between the two processes (process_vm_readv(2)), without the peer's help.
    ProcessMemory,
    /// Sockets; the peer's agent takes part.
    Tcp,
}

impl Path {
    /// All paths, the best first.
    pub const ALL: [Self; 3] = [Self::SharedMemory, Self::ProcessMemory, Self::Tcp];
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SharedMemory => "shm",
            Self::ProcessMemory => "shm (process_vm)",
            Self::Tcp => "tcp",
        })
    }
}

/// A set of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSet(u8);

impl PathSet {
    /// Every path.
    pub const ALL: Self = Self(0b111);
    /// Those within one host.
    pub const SHM: Self = Self(0b011);
    /// Sockets only.
    pub const TCP: Self = Self(0b100);
    /// None.
    pub const EMPTY: Self = Self(0);

    /// Whether `path` is in it.
    #[must_use]
    pub fn contains(self, path: Path) -> bool {
        self.0 & Self::from(path).0 != 0
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl From<Path> for PathSet {
    fn from(path: Path) -> Self {
        Self(match path {
            Path::SharedMemory => 1,
            Path::ProcessMemory => 2,
            Path::Tcp => 4,
        })
    }
}

/// Why a path is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A better one was.
    BetterPath,
    /// The configuration of this agent leaves it out.
    NotAllowed,
    /// No Unix socket leads to the peer: another host, or another network namespace.
    OtherHost,
    /// This process cannot hold on to the peer's: pidfd_open(2) is forbidden (seccomp) or missing, or the peer lives in
    /// another PID namespace.
    NoPidfd,
    /// A Unix socket of the peer's name is there, and did not let this agent in: it is another agent's, or the peer cannot
    /// hold on to this process.
    NotWelcome,
    /// The peer does not allow it.
    Refused,
    /// A region of the peer was not allocated by its agent, so there is no file to map.
    ForeignMemory,
    /// The kernel does not let this process read the peer's memory (ptrace rules: same user, same or no
    /// container, `kernel.yama.ptrace_scope` 0).
    PtraceDenied,
    /// No connection for data stands.
    NotConnected,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BetterPath => "a better path is there",
            Self::NotAllowed => "the configuration leaves it out",
            Self::OtherHost => "no Unix socket leads to the peer (other host or network namespace)",
            Self::NoPidfd => {
                "this process cannot hold on to the peer's: pidfd_open is forbidden (seccomp), missing (Linux 5.3) or \
                 cannot see it (PID namespace)"
            }
            Self::NotWelcome => {
                "the peer did not let this agent in at its Unix socket; see the peer's log (pidfd_open there)"
            }
            Self::Refused => "the peer leaves it out",
            Self::ForeignMemory => "a region of the peer was registered, not allocated by its agent",
            Self::PtraceDenied => {
                "the kernel's ptrace rules forbid it (kernel.yama.ptrace_scope, user, container)"
            }
            Self::NotConnected => "no data connection stands",
        })
    }
}

/// What is known about the way to a peer and the memory at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// What the configuration allows.
    pub allowed: PathSet,
    /// Whether a Unix socket leads to the peer.
    pub local: Result<(), Reason>,
    /// Whether the kernel lets us at the peer's memory.
    pub ptrace: bool,
    /// Whether data connections stand.
    pub tcp: bool,
    /// Whether they are encrypted.
    pub encrypted: bool,
    /// Whether every remote region can be mapped.
    pub mappable: bool,
}

impl Facts {
    /// Everything is there.
    #[must_use]
    pub fn best() -> Self {
        let (allowed, encrypted) = (PathSet::ALL, false);
        Self { allowed, local: Ok(()), ptrace: true, tcp: true, encrypted, mappable: true }
    }

    /// `None` when the path can be taken.
    fn against(&self, path: Path) -> Option<Reason> {
        if !self.allowed.contains(path) {
            return Some(Reason::NotAllowed);
        }
        match path {
            Path::SharedMemory | Path::ProcessMemory if self.local.is_err() => self.local.err(),
            Path::SharedMemory => (!self.mappable).then_some(Reason::ForeignMemory),
            Path::ProcessMemory => (!self.ptrace).then_some(Reason::PtraceDenied),
            Path::Tcp => (!self.tcp).then_some(Reason::NotConnected),
        }
    }
}

impl Reason {
    /// Whether the path would be there if something were set up otherwise, here or at the peer; a transfer that goes
    /// another way because of it has fallen back.
    #[must_use]
    pub fn is_mendable(self) -> bool {
        match self {
            Self::NoPidfd
            | Self::NotWelcome
            | Self::Refused
            | Self::ForeignMemory
            | Self::PtraceDenied
            | Self::NotConnected => true,
            Self::BetterPath | Self::NotAllowed | Self::OtherHost => false,
        }
    }
}

/// What to do where the best path is ruled out by something that could be mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Take the next one; the explanation tells.
    #[default]
    Fallback,
    /// Refuse. Paths that are left out on purpose do not count, nor do those that only lead within one host.
    Strict,
}

/// The path of a transfer, and what spoke against each other one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The path taken, or `None` where every one is ruled out.
    pub path: Option<Path>,
    /// The bytes travel encrypted: a tcp path where either agent asks for it. Within the host there is no way that
    /// anybody could listen on.
    pub encrypted: bool,
    /// The others.
    pub rejected: Vec<(Path, Reason)>,
    /// Bytes in a second that the path is expected to give for large transfers, where something is known of it.
    pub expected_rate: Option<u64>,
}

impl Explanation {
    /// Whether a better path than the one taken is ruled out by something that could be mended.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        let better = |path| self.path.is_none_or(|taken| path < taken);
        self.rejected.iter().any(|&(path, reason)| better(path) && reason.is_mendable())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Some(path) => write!(f, "path: {path}")?,
            None => f.write_str("no path")?,
        }
        if self.encrypted {
            f.write_str(", encrypted")?;
        }
        if let Some(rate) = self.expected_rate {
            write!(f, ", about {}.{} GB/s", rate / 1_000_000_000, rate % 1_000_000_000 / 100_000_000)?;
        }
        self.rejected.iter().try_for_each(|(path, reason)| write!(f, "; not {path}: {reason}"))
    }
}

/// Takes the best path that nothing speaks against.
#[must_use]
pub fn choose(facts: &Facts) -> Explanation {
    let (rejected, expected_rate) = (Vec::new(), None);
    let mut explanation = Explanation { path: None, encrypted: false, rejected, expected_rate };
    for path in Path::ALL {
        match facts.against(path) {
            Some(reason) => explanation.rejected.push((path, reason)),
            None if explanation.path.is_none() => {
                explanation.path = Some(path);
                explanation.encrypted = path == Path::Tcp && facts.encrypted;
            }
            None => explanation.rejected.push((path, Reason::BetterPath)),
        }
    }
    explanation
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn path(change: impl FnOnce(&mut Facts)) -> Option<Path> {
        let mut facts = Facts::best();
        change(&mut facts);
        choose(&facts).path
    }

    #[test]
    fn the_best_path_that_is_there_is_taken() {
        assert_eq!(path(|_| ()), Some(Path::SharedMemory));
        assert_eq!(path(|f| f.mappable = false), Some(Path::ProcessMemory));
        assert_eq!(path(|f| (f.mappable, f.ptrace) = (false, false)), Some(Path::Tcp));
        assert_eq!(path(|f| f.local = Err(Reason::OtherHost)), Some(Path::Tcp));
        assert_eq!(path(|f| f.allowed = PathSet::TCP), Some(Path::Tcp));
        assert_eq!(path(|f| (f.allowed, f.local) = (PathSet::SHM, Err(Reason::OtherHost))), None);
    }

    #[test]
    fn falling_back_is_told_from_having_no_choice() {
        let falls_back = |change: &dyn Fn(&mut Facts)| {
            let mut facts = Facts::best();
            change(&mut facts);
            choose(&facts).is_fallback()
        };
        assert!(!falls_back(&|_| ()));
        assert!(falls_back(&|f| f.mappable = false));
        assert!(falls_back(&|f| (f.mappable, f.ptrace) = (false, false)));
        assert!(falls_back(&|f| f.local = Err(Reason::Refused)));
        assert!(!falls_back(&|f| f.local = Err(Reason::OtherHost)));
        assert!(!falls_back(&|f| f.allowed = PathSet::TCP));
        assert!(!falls_back(&|f| (f.mappable, f.allowed) = (false, PathSet(0b110))));
    }

    #[test]
    fn it_says_why_not_the_others() {
        let mut facts = Facts::best();
        (facts.mappable, facts.ptrace, facts.tcp) = (false, false, false);
        let told = choose(&facts).to_string();
        assert!(told.starts_with("no path; not shm: a region of the peer was registered"), "{told}");
        (facts.tcp, facts.encrypted) = (true, true);
        let secret = choose(&facts).to_string();
        assert!(secret.starts_with("path: tcp, encrypted; not shm"), "{secret}");
        facts.mappable = true;
        assert!(!choose(&facts).encrypted, "memory is not encrypted");
        let mut fast = choose(&Facts::best());
        fast.expected_rate = Some(12_345_678_901);
        assert!(fast.to_string().starts_with("path: shm, about 12.3 GB/s; not"), "{fast}");
        assert!(told.contains("ptrace_scope") && told.contains("no data connection"), "{told}");
    }
}
