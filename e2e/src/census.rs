//! Counting what a machine holds, to see that nothing is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What can leak, each as a set of names that can be compared and printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Command lines of processes that name the machine's directories, the `berth up` itself aside.
    pub processes: BTreeSet<String>,
    /// Links in the machine's network namespace.
    pub links: BTreeSet<String>,
    /// Mounts below the machine's directories.
    pub mounts: BTreeSet<String>,
    /// Named network namespaces of pods.
    pub netns: BTreeSet<String>,
    /// Pod directories and cgroups.
    pub pods: BTreeSet<String>,
    /// Open descriptors of `berth up`.
    pub descriptors: usize,
}

impl Census {
    /// Takes the census of a machine with the given directories.
    ///
    /// `pods` are the pods that the machine ever had: their control groups are looked for also when their directories
    /// are gone.
    pub fn take(
        berth_pid: u32,
        state: &Path,
        run: &Path,
        links: BTreeSet<String>,
        pods: &BTreeSet<String>,
    ) -> Self {
        let names = |path: &Path| -> BTreeSet<String> {
            fs::read_dir(path)
                .map(|dir| {
                    dir.flatten()
                        .map(|entry| entry.file_name().to_string_lossy().into_owned())
                        .collect()
                })
                .unwrap_or_default()
        };
        let (state_text, run_text) = (
            state.to_string_lossy().into_owned(),
            run.to_string_lossy().into_owned(),
        );
        let ours = |text: &str| text.contains(&state_text) || text.contains(&run_text);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // A pod's processes live in another pid namespace than ours and descend from what berth started: their
        // mount namespace's root tells whose they are.
        let own_pid_ns = fs::read_link("/proc/self/ns/pid").ok();
        let processes = names(Path::new("/proc"))
            .into_iter()
            .filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != berth_pid))
            .filter_map(|pid| {
                let proc = Path::new("/proc").join(&pid);
                let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
                // After the name in parentheses: state and parent.
                let mut fields = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or_default()
                    .split(' ')
                    .skip(1);
                if fields.next() == Some("Z") && fields.next() == Some(&berth_pid.to_string()) {
                    return Some(format!("{pid} is a zombie of berth"));
                }
                let command = fs::read(proc.join("cmdline")).ok()?;
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                let in_pod = fs::read_link(proc.join("ns/pid"))
                    .is_ok_and(|ns| Some(ns) != own_pid_ns)
                    && fs::read_to_string(proc.join("mountinfo")).is_ok_and(|mounts| ours(&mounts));
                (in_pod || (ours(&command) && command.contains("berth")))
                    .then(|| format!("{pid} {command}"))
            })
            .collect();
        let known: BTreeSet<_> = pods.union(&names(&state.join("pods"))).cloned().collect();
        let mut pods = names(&state.join("pods"));
        for hierarchy in names(Path::new("/sys/fs/cgroup"))
            .into_iter()
            .chain([String::new()])
        {
            let group = Path::new("/sys/fs/cgroup").join(&hierarchy).join("berth");
            let left = names(&group);
            pods.extend(
                known
                    .iter()
                    .filter(|uid| left.iter().any(|name| name.contains(uid.as_str())))
                    .map(|uid| format!("control group {hierarchy}/berth/{uid}")),
            );
        }
        Self {
            processes,
            links,
            mounts: mounts
                .lines()
                .filter(|line| ours(line))
                .map(str::to_owned)
                .collect(),
            netns: names(&run.join("netns")),
            pods,
            descriptors: names(&Path::new("/proc").join(berth_pid.to_string()).join("fd")).len(),
        }
    }
}
