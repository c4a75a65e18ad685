//! What processes have used of the processor.

pub struct Process {
    pub parent: u32,
    /// Seconds of the processor.
    pub cpu: f64,
    /// The same, of children that have ended.
    of_ended: f64,
}

pub fn process(pid: u32) -> Process {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let at = |field: usize| fields.get(field - 3).copied().unwrap_or_default();
    // SAFETY: it has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Process {
        parent: at(4) as u32,
        cpu: (at(14) + at(15)) / ticks,
        of_ended: (at(16) + at(17)) / ticks,
    }
}

/// Seconds of a process and its children.
pub fn with_children(pid: u32) -> f64 {
    let children = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(process)
        .filter(|child| child.parent == pid)
        .map(|child| child.cpu)
        .sum::<f64>();
    let own = process(pid);
    own.cpu + own.of_ended + children
}
