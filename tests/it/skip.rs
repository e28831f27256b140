//! Tests that cannot run here: each says so where people see it, and is counted by `scripts/test`.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// The file that skipped tests are written down in, each with a tab and the reason; `scripts/test` sets it.
const RECORD_VARIABLE: &str = "CAIRN_TEST_SKIPPED";

/// Says that the running test, or a part of it, is skipped, and why.
pub fn skipped(reason: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let Some(path) = std::env::var_os(RECORD_VARIABLE) else {
        // Written past the capture of the test harness, which shows nothing of a test that passes.
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
        return;
    };
    let line = format!("{test}\t{reason}\n");
    let record = OpenOptions::new().create(true).append(true).open(path);
    record.and_then(|mut record| record.write_all(line.as_bytes())).expect("the record can be written to");
}
