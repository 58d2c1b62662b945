//! Control groups of pods, for either version of the kernel's interface.
//!
//! A pod's group is `berth/<pod uid>`. With version 2 it lies below the root of the one tree; with version 1 below the
//! agent's own group in each hierarchy that is needed, so that a limit on the agent's group holds for its pods.
//! Only what was asked for is limited: a guessed memory limit kills guests, so without a limit the memory hierarchy of
//! version 1 is not even entered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Most processes and threads of one pod: QEMU's workers, libvirtd's, the launcher's, with much room.
const PIDS_MAX: u32 = 2048;
/// How long a group may take to become empty after its processes were killed.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// What a pod asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes, if limited.
    pub(crate) memory: Option<u64>,
    /// Thousandths of a CPU, if limited.
    pub(crate) cpu_max_millis: Option<u64>,
    /// Thousandths of a CPU that decide its share when there is not enough.
    pub(crate) cpu_request_millis: u64,
}

/// The machine's control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// One tree, mounted here, with these controllers.
    V2 {
        root: PathBuf,
        controllers: Vec<String>,
    },
    /// The agent's own group in the hierarchy of each controller.
    V1 { own: Vec<(String, PathBuf)> },
    /// There are none.
    None,
}

/// An error that names the file.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// The groups that [`create`] would make, so that they can be on record before they are there.
pub(crate) fn paths(pod_uid: &str, limits: &Limits) -> Vec<PathBuf> {
    paths_in(&layout(), pod_uid, limits)
}

fn paths_in(layout: &Layout, pod_uid: &str, limits: &Limits) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = match layout {
        Layout::V2 { root, .. } => vec![root.join("berth").join(pod_uid)],
        Layout::V1 { own } => own
            .iter()
            .filter(|(controller, _)| controller != "memory" || limits.memory.is_some())
            .map(|(_, path)| path.join("berth").join(pod_uid))
            .collect(),
        Layout::None => Vec::new(),
    };
    paths.sort();
    // Controllers that are mounted together have one group.
    paths.dedup();
    paths
}

/// Makes the groups and sets their limits. Blocks; may be called again.
///
/// # Errors
/// When the kernel refuses a group or a limit that the pod was given.
pub(crate) fn create(paths: &[PathBuf], limits: &Limits) -> io::Result<()> {
    if let Layout::V2 { root, controllers } = layout() {
        enable_controllers(&root, &controllers)?;
    }
    for path in paths {
        fs::create_dir_all(path).map_err(at(path))?;
        for (file, value) in settings(limits) {
            let file = path.join(file);
            // A controller has its files in one version's, and in one hierarchy's, groups only.
            if file.exists() {
                fs::write(&file, value).map_err(at(&file))?;
            }
        }
    }
    check_limits(paths, limits)
}

/// A limit that was asked for and is nowhere would let the guest take the whole machine.
fn check_limits(paths: &[PathBuf], limits: &Limits) -> io::Result<()> {
    let asked = [
        (
            "memory",
            limits.memory.is_some(),
            ["memory.max", "memory.limit_in_bytes"],
        ),
        (
            "cpu",
            limits.cpu_max_millis.is_some(),
            ["cpu.max", "cpu.cfs_quota_us"],
        ),
    ];
    for (controller, is_limited, files) in asked {
        let is_set = || {
            paths
                .iter()
                .any(|path| files.iter().any(|file| path.join(file).exists()))
        };
        if is_limited && !is_set() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "the pod has a {controller} limit, and this machine has no {controller} controller"
                ),
            ));
        }
    }
    Ok(())
}

/// Controllers have to be handed down level by level.
fn enable_controllers(root: &Path, controllers: &[String]) -> io::Result<()> {
    let base = root.join("berth");
    fs::create_dir_all(&base).map_err(at(&base))?;
    for level in [root, &base] {
        let file = level.join("cgroup.subtree_control");
        for controller in controllers {
            fs::write(&file, format!("+{controller}")).map_err(at(&file))?;
        }
    }
    Ok(())
}

fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let shares = (limits.cpu_request_millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
    // The kernel's mapping of the old range of shares to the new one of weights.
    let weight = 1 + (shares - 2) * 9999 / 262_142;
    let mut settings = vec![
        ("pids.max", PIDS_MAX.to_string()),
        ("cpu.weight", weight.to_string()),
        ("cpu.shares", shares.to_string()),
    ];
    if let Some(memory) = limits.memory {
        settings.push(("memory.max", memory.to_string()));
        settings.push(("memory.limit_in_bytes", memory.to_string()));
    }
    if let Some(millis) = limits.cpu_max_millis {
        const PERIOD: u64 = 100_000;
        let quota = (millis.saturating_mul(PERIOD) / 1000).max(1000);
        settings.push(("cpu.max", format!("{quota} {PERIOD}")));
        settings.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    settings
}

/// Whether the kernel killed something in these groups for lack of memory.
pub(crate) fn was_out_of_memory(paths: &[PathBuf]) -> bool {
    paths.iter().any(|path| {
        ["memory.events", "memory.oom_control"].iter().any(|file| {
            let text = fs::read_to_string(path.join(file)).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count.trim() != "0")
        })
    })
}

/// Kills whatever is in the groups: an agent that died between starting a pod and recording it left its process there.
pub(crate) fn kill(paths: &[PathBuf]) {
    for path in paths {
        let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        let pids = procs
            .lines()
            .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?));
        for pid in pids {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Removes the groups once they are empty. What is gone already is no error. Blocks for a bounded time.
pub(crate) fn remove(paths: &[PathBuf]) -> Vec<io::Error> {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    paths
        .iter()
        .filter_map(|path| remove_one(path, deadline).err())
        .collect()
}

fn remove_one(path: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel still takes apart what was killed.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(at(path)(error)),
            Ok(()) => break,
        }
    }
    // The last pod takes `berth` with it.
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn layout() -> Layout {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let layout = parse_layout(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    match layout {
        Layout::V2 { root, .. } => {
            let offered = read_words(&root.join("cgroup.controllers"));
            let wanted = ["cpu", "memory", "pids"].map(str::to_owned);
            let controllers = wanted.into_iter().filter(|c| offered.contains(c)).collect();
            Layout::V2 { root, controllers }
        }
        other => other,
    }
}

fn read_words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Reads mountinfo and the agent's own groups. Hierarchies of version 1 win where both are mounted: they hold the
/// controllers then.
fn parse_layout(mountinfo: &str, own: &str) -> Layout {
    let own: Vec<(&str, &str)> = own
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .collect();
    let mut v1 = Vec::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (left.next(), left.next()) else {
            continue;
        };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") => v2 = v2.or(Some(PathBuf::from(point))),
            Some("cgroup") => {
                let options = right.nth(1).unwrap_or_default();
                for controller in ["memory", "cpu", "cpuacct", "pids"] {
                    if !options.split(',').any(|o| o == controller) {
                        continue;
                    }
                    let group = own
                        .iter()
                        .find(|(list, _)| list.split(',').any(|c| c == controller));
                    let Some((_, group)) = group else { continue };
                    // In a container the mount shows a part of the tree, and the group's path is the whole tree's.
                    let group = group
                        .strip_prefix(root.trim_end_matches('/'))
                        .unwrap_or(group);
                    let path = Path::new(point).join(group.trim_start_matches('/'));
                    v1.push((controller.to_owned(), path));
                }
            }
            _ => {}
        }
    }
    match v2 {
        _ if !v1.is_empty() => Layout::V1 { own: v1 },
        Some(root) => Layout::V2 {
            root,
            controllers: Vec::new(),
        },
        None => Layout::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /box /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn limited() -> Limits {
        Limits {
            memory: Some(1 << 30),
            ..Limits::default()
        }
    }

    #[test]
    fn version_one_lies_below_the_agents_own_groups() {
        let own = "4:memory:/box/agent\n2:cpu,cpuacct:/\n8:pids:/x\n0::/\n";
        let layout = parse_layout(HYBRID, own);
        let paths = |limits| -> Vec<String> {
            paths_in(&layout, "u1", &limits)
                .iter()
                .map(|p| p.display().to_string())
                .collect()
        };
        let without = [
            "/sys/fs/cgroup/cpu/berth/u1",
            "/sys/fs/cgroup/pids/x/berth/u1",
        ];
        assert_eq!(paths(Limits::default()), without);
        let with = paths(limited());
        assert!(
            with.contains(&"/sys/fs/cgroup/memory/agent/berth/u1".to_owned()),
            "{with:?}"
        );
    }

    #[test]
    fn version_two_is_one_tree() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let layout = parse_layout(mountinfo, "0::/system.slice/berth.service\n");
        assert_eq!(
            paths_in(&layout, "u1", &limited()),
            [Path::new("/sys/fs/cgroup/berth/u1")]
        );
        assert_eq!(parse_layout("", ""), Layout::None);
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error() {
        let group = tempfile::tempdir().unwrap();
        let paths = [group.path().to_owned()];
        check_limits(&[], &Limits::default()).unwrap();
        let error = |limits| check_limits(&paths, &limits).unwrap_err().to_string();
        assert!(error(limited()).contains("no memory controller"));
        let capped = Limits {
            cpu_max_millis: Some(500),
            ..Limits::default()
        };
        assert!(error(capped).contains("no cpu controller"));
        fs::write(group.path().join("memory.max"), "").unwrap();
        check_limits(&paths, &limited()).unwrap();
    }

    #[test]
    fn requests_become_shares_and_limits_only_what_was_limited() {
        let value = |limits: Limits, name: &str| {
            settings(&limits)
                .into_iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v)
        };
        let plain = Limits {
            cpu_request_millis: 1000,
            ..Limits::default()
        };
        assert_eq!(value(plain, "cpu.shares").unwrap(), "1024");
        assert_eq!(value(plain, "cpu.weight").unwrap(), "39");
        assert_eq!(value(plain, "memory.max"), None);
        assert_eq!(value(plain, "cpu.max"), None);
        let capped = Limits {
            cpu_max_millis: Some(1500),
            ..limited()
        };
        assert_eq!(value(capped, "cpu.max").unwrap(), "150000 100000");
        assert_eq!(
            value(capped, "memory.limit_in_bytes").unwrap(),
            "1073741824"
        );
    }
}
