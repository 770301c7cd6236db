//! Holds this process in, as far as its kernel can: whoever broke out of a sandbox, or fooled an
//! engine with a file, would find little to reach. What cannot be had is said, and done without.
//! Knows nothing of bundles or settings: it is told what must stay within reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// What a process needs; nothing else is given to it, beside what every process reads.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Files, and folders with all that is in them. What is not there is passed over.
    pub reads: Vec<PathBuf>,
    /// Folders to write to, too.
    pub writes: Vec<PathBuf>,
    /// As those; and it may be removed itself.
    pub scratch: Option<PathBuf>,
    pub network: Network,
    pub programs: Programs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// No socket at all.
    None,
    /// Connections come in at these TCP ports; 0 is any that is free.
    Listens(Vec<u16>),
    /// And go out to anywhere.
    ListensAndConnects(Vec<u16>),
}

/// What may be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    None,
    /// This program once more.
    Itself,
    /// Whatever there is, for that reason.
    Any(String),
}

/// What took effect, and what did not and why.
#[derive(Debug, Default)]
pub struct Confinement {
    pub on: Vec<String>,
    pub off: Vec<String>,
}

/// Holds in this thread and all that it starts; so it comes before the first of them. There is
/// no way back.
pub fn confine(reach: &Reach) -> Confinement {
    let mut confinement = Confinement::default();
    let mut note = |what: &str, result: Result<String, String>| match result {
        Ok(details) => confinement.on.push(format!("{what}{details}")),
        Err(reason) => confinement.off.push(format!("{what}: {reason}")),
    };
    let no_new_privileges = rustix::thread::set_no_new_privs(true);
    note("no-new-privs", no_new_privileges.map(|()| String::new()).map_err(|e| e.to_string()));
    note("landlock", restrict_files(reach));
    note("seccomp", deny_calls(reach));
    confinement
}

/// Of the system's, what programs and their libraries read: processes' and processors' own
/// accounts, name servers, time zones, certificates of registries.
const SYSTEM_READS: [&str; 9] = [
    "/etc",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/usr/share",
    "/usr/local/share/ca-certificates",
];

const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Landlock: <https://docs.kernel.org/userspace-api/landlock.html>.
fn restrict_files(reach: &Reach) -> Result<String, String> {
    if let Programs::Any(reason) = &reach.programs {
        return Err(reason.clone());
    }
    let status = ruleset(reach).map_err(|error| match error {
        RulesetError::HandleAccesses(_) => "this kernel has none, or an old one".to_owned(),
        error => error.to_string(),
    })?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Err("this kernel has none".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Ok(format!(" (ABI {}: {})", effective_abi as i32, kinds(effective_abi)))
        }
        _ => Ok(String::new()),
    }
}

/// What an ABI restricts of what is asked for.
fn kinds(abi: ABI) -> &'static str {
    match abi as i32 {
        ..4 => "files",
        4..6 => "files, TCP",
        _ => "files, TCP, signals",
    }
}

fn ruleset(reach: &Reach) -> Result<landlock::RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(ABI::V5);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let network = match reach.network {
        Network::ListensAndConnects(_) => BitFlags::from(AccessNet::BindTcp),
        Network::None | Network::Listens(_) => AccessNet::BindTcp | AccessNet::ConnectTcp,
    };
    let ports = match &reach.network {
        Network::None => &[][..],
        Network::Listens(ports) | Network::ListensAndConnects(ports) => ports,
    };
    let mapped = Mapped::read();
    let programs = match reach.programs {
        Programs::Itself => {
            [Some(PathBuf::from("/proc/self/exe")), mapped.interpreter].into_iter().flatten()
        }
        Programs::None | Programs::Any(_) => [None, None].into_iter().flatten(),
    };
    let around = reach.scratch.as_deref().and_then(Path::parent);
    let ports =
        ports.iter().map(|&port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::BindTcp)));
    Ruleset::default()
        // Before it, no file could be moved from one folder to another.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(network)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM_READS, read))?
        .add_rules(path_beneath_rules(DEVICES, AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(mapped.folders, read))?
        .add_rules(path_beneath_rules(programs, AccessFs::Execute | AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(&reach.reads, read))?
        .add_rules(path_beneath_rules(reach.writes.iter().chain(&reach.scratch), write))?
        // A right of the folder that it lies in.
        .add_rules(path_beneath_rules(around, AccessFs::RemoveDir))?
        .add_rules(ports)?
        .restrict_self()
}

/// What the dynamic loader has brought in, and where it will look for more.
#[derive(Debug, Default)]
struct Mapped {
    folders: BTreeSet<PathBuf>,
    /// The loader, which starts this program.
    interpreter: Option<PathBuf>,
}

impl Mapped {
    /// Reads it off this process; nothing where that cannot be.
    fn read() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let files: BTreeSet<&str> =
            maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
        let mut mapped = Self::default();
        for file in files.into_iter().map(Path::new) {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("ld-") {
                mapped.interpreter = Some(file.to_owned());
            }
            if name.contains(".so") {
                mapped.folders.extend(file.parent().map(Path::to_owned));
            }
        }
        mapped
    }
}

/// seccomp: <https://docs.kernel.org/userspace-api/seccomp_filter.html>. A list of what is denied:
/// of the three hundred calls that are left, libraries take what they like.
fn deny_calls(reach: &Reach) -> Result<String, String> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let mut denied = NEVER.to_vec();
    if reach.programs == Programs::None {
        denied.extend([libc::SYS_execve, libc::SYS_execveat]);
    }
    #[cfg(target_arch = "x86_64")]
    {
        denied.extend([libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib]);
        // The same calls by the numbers of x32, and those that have numbers of their own there.
        const X32: i64 = 0x4000_0000;
        let again: Vec<i64> = denied.iter().map(|call| call | X32).collect();
        denied.extend(again);
        denied.extend((512..=547).map(|call| call | X32));
        let with_arguments = [libc::SYS_socket, libc::SYS_clone, libc::SYS_clone3];
        denied.extend(with_arguments.map(|call| call | X32));
    }
    let mut rules: BTreeMap<i64, _> = denied.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets(&reach.network).map_err(|error| error.to_string())?);
    rules.insert(libc::SYS_clone, namespaces().map_err(|error| error.to_string())?);
    // Its flags lie in memory, where no filter sees them; libraries then call the one above.
    let unseen = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (rules, error) in [(rules, libc::EPERM), (unseen, libc::ENOSYS)] {
        let refused = SeccompAction::Errno(error as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture);
        let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
        let program = program.map_err(|error| error.to_string())?;
        apply_filter_all_threads(&program).map_err(|error| error.to_string())?;
    }
    Ok(match reach.network {
        Network::None => " (no sockets)".to_owned(),
        Network::Listens(_) => " (TCP only)".to_owned(),
        Network::ListensAndConnects(_) => String::new(),
    })
}

/// The sockets that are denied: all but those of the internet, and the one that tells of the
/// network's own state. Files' permissions alone would keep a program from the sockets of the
/// system's services, and this one may well be root's.
fn sockets(network: &Network) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let argument = |index, operator, value: i32| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value as u64)
    };
    let of_kind = |kind| argument(1, SeccompCmpOp::MaskedEq(0xf), kind);
    let other = |family| argument(0, SeccompCmpOp::Ne, family);
    let families = [other(libc::AF_INET)?, other(libc::AF_INET6)?, other(libc::AF_NETLINK)?];
    let mut rules = vec![SeccompRule::new(families.to_vec())?];
    let kinds = match network {
        Network::None => return Ok(Vec::new()),
        Network::Listens(_) => &[libc::SOCK_DGRAM, libc::SOCK_RAW][..],
        Network::ListensAndConnects(_) => &[libc::SOCK_RAW],
    };
    for &kind in kinds {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = argument(0, SeccompCmpOp::Eq, family)?;
            rules.push(SeccompRule::new(vec![family, of_kind(kind)?])?);
        }
    }
    Ok(rules)
}

/// A process in a namespace of its own may there do what it may not here.
fn namespaces() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const KINDS: [i32; 7] = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let rule = |kind: i32| {
        let flag = u64::from(kind.unsigned_abs());
        let has = SeccompCmpOp::MaskedEq(flag);
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, has, flag)?])
    };
    KINDS.into_iter().map(rule).collect()
}

/// What no part of this program ever calls: others' memory, the kernel's own programs and
/// modules, file systems, namespaces, keys, clocks.
const NEVER: [i64; 49] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
];

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Each in a thread of its own, which alone is held in.
    fn held_in<T: Send>(reach: &Reach, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let held_in = scope.spawn(|| {
                restrict_files(reach).expect("this kernel has Landlock");
                work()
            });
            held_in.join().expect("no panic")
        })
    }

    #[test]
    fn what_is_not_named_is_out_of_reach() {
        let folder = tempfile::tempdir().expect("a folder");
        let [read, write, other, scratch] =
            ["read", "write", "other", "scratch"].map(|name| folder.path().join(name));
        for folder in [&read, &write, &other, &scratch] {
            fs::create_dir(folder).expect("a folder");
            fs::write(folder.join("file"), "text").expect("a file");
        }
        fs::create_dir(write.join("below")).expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (reads, writes) = (vec![read.clone()], vec![write.clone()]);
        let network = Network::Listens(vec![0]);
        let programs = Programs::None;
        let reach = Reach { reads, writes, scratch: Some(scratch.clone()), network, programs };
        held_in(&reach, || {
            let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            let text = |folder: &Path| fs::read_to_string(folder.join("file"));
            assert_eq!(text(&read).expect("it may be read"), "text");
            assert_eq!(text(&write).expect("it may be read"), "text");
            assert!(text(&other).is_err_and(denied));
            assert!(fs::read_dir(&other).is_err_and(denied));
            assert!(fs::write(read.join("file"), "").is_err_and(denied));
            assert!(fs::remove_file(other.join("file")).is_err_and(denied));
            fs::rename(write.join("file"), write.join("below/file")).expect("it may be moved");
            assert!(fs::rename(write.join("below"), other.join("below")).is_err());
            fs::remove_dir_all(&scratch).expect("it may be removed");
            assert!(Command::new("/bin/true").status().is_err_and(denied));
            assert!(TcpStream::connect(address).is_err_and(denied));
            assert!(TcpListener::bind(("127.0.0.1", 9)).is_err_and(denied));
            TcpListener::bind("127.0.0.1:0").expect("a port that may be listened on");
        });
        let outwards = Network::ListensAndConnects(Vec::new());
        let reach = Reach { network: outwards, programs: Programs::Itself, ..reach };
        held_in(&reach, || {
            TcpStream::connect(address).expect("it may connect");
            let itself = Command::new("/proc/self/exe").arg("--list").output();
            assert!(itself.expect("it may start itself").status.success());
            assert!(Command::new("/bin/true").status().is_err());
        });
    }
}
