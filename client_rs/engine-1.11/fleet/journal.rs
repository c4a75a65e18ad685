//! What was executed when, outside of everything that is tested: a line when a step begins and
//! one when it ends, in a file of this process.
//!
//! A line is one `write` to a file opened for appending. What has been written survives SIGKILL:
//! the page cache belongs to the kernel. (It would not survive the machine; nobody kills that.)

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use serde_json::{json, Value};
use uuid::Uuid;
use wfe_core::traits::StepExecutionContext;

static FILE: OnceLock<File> = OnceLock::new();
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Opens the journal of this process. Without one, nothing is written.
pub fn open(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    assert!(FILE.set(file).is_ok(), "a process has one journal");
    Ok(())
}

/// The number of executions that have begun and not ended.
pub fn running() -> usize {
    RUNNING.load(Ordering::SeqCst)
}

/// One execution of one step.
pub struct Execution {
    pub id: Uuid,
}

impl Execution {
    pub fn begin(step: &str, context: &StepExecutionContext<'_>) -> Self {
        let id = Uuid::new_v4();
        RUNNING.fetch_add(1, Ordering::SeqCst);
        write(|| {
            json!({
                "begin": id, "ns": now(), "step": step,
                "workflow": context.workflow.id, "pointer": context.execution_pointer.id,
                // By which executions the state that it works on was made.
                "seen": context.workflow.data,
            })
        });
        Self { id }
    }
}

impl Drop for Execution {
    // Also when the host abandons the step.
    fn drop(&mut self) {
        write(|| json!({"end": self.id, "ns": now()}));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn write(line: impl FnOnce() -> Value) {
    if let Some(mut file) = FILE.get() {
        let line = format!("{}\n", line());
        file.write_all(line.as_bytes())
            .expect("there is space for the journal");
    }
}

/// Nanoseconds of the clock that all processes of this machine share, and that nobody sets.
fn now() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing, and every Linux has this clock.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
