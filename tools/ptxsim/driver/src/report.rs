//! What a context has to tell: its launches, and what was found in them and between its streams.

use crate::ffi::Out;
use crate::state::{Settings, lock};
use ptxsim::check::Finding;
use ptxsim::exec::launch;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::ffi::c_char;

/// Launches that are kept; older ones are only counted.
const KEPT: usize = 4096;

/// Two streams use the same memory, and nothing orders them.
pub struct StreamFinding {
    /// The later piece of work.
    pub what: String,
    /// The earlier one.
    pub other: String,
    /// A sentence.
    pub message: String,
}

/// The report of one context.
#[derive(Default)]
pub struct Report {
    launches: VecDeque<Value>,
    dropped: u64,
    stream_findings: Vec<Value>,
    findings: u64,
    printed: HashSet<String>,
}

impl Report {
    /// Adds a launch; tells whether its findings end the context.
    pub fn add_launch(&mut self, settings: &Settings, report: &launch::Report) -> bool {
        for finding in &report.findings {
            self.findings += 1;
            self.print(settings, &key(finding), &finding.to_string());
        }
        if self.launches.len() == KEPT {
            self.launches.pop_front();
            self.dropped += 1;
        }
        self.launches.push_back(report.to_json());
        !report.findings.is_empty() && !settings.report_only
    }

    /// Adds a race between streams; tells whether it ends the context.
    pub fn add_stream_finding(&mut self, settings: &Settings, finding: StreamFinding) -> bool {
        self.findings += 1;
        let StreamFinding { what, other, message } = finding;
        self.print(settings, &format!("stream_race {what} {other}"), &format!("stream_race: {message}"));
        if self.stream_findings.len() < KEPT {
            self.stream_findings.push(json!({
                "kind": "stream_race", "severity": "error", "work": what, "other": other, "message": message,
            }));
        }
        !settings.report_only
    }

    /// Prints a message that belongs to no finding.
    pub fn note(&mut self, settings: &Settings, message: &str) {
        self.print(settings, message, message);
    }

    /// Prints a message once.
    fn print(&mut self, settings: &Settings, key: &str, message: &str) {
        if self.printed.insert(key.to_string()) && !settings.quiet {
            eprintln!("ptxsim: {message}");
        }
    }

    fn json(&self, card: &str) -> Value {
        json!({
            "ptxsim": env!("CARGO_PKG_VERSION"),
            "card": card,
            "findings": self.findings,
            "launches": self.launches,
            "dropped_launches": self.dropped,
            "stream_findings": self.stream_findings,
        })
    }
}

/// Findings that are printed once: of a kind, at an instruction.
fn key(finding: &Finding) -> String {
    format!("{} {} {} {}", finding.kind.name(), finding.kernel, finding.ptx_line, finding.line)
}

/// `ptxsim_report_json`: writes as much as there is room for, with a NUL; returns the length without the NUL, 0 without a
/// context.
pub fn json_text(out: Out<c_char>, room: usize) -> usize {
    let Ok(context) = crate::context::top() else { return 0 };
    let card = context.device().map_or("", |d| &d.card.name);
    let text = lock(&context.report).json(card).to_string();
    if room > 0 {
        let bytes = &text.as_bytes()[..text.len().min(room - 1)];
        for (i, &byte) in bytes.iter().chain(&[0]).enumerate() {
            out.set_at(i, byte as c_char);
        }
    }
    text.len()
}

/// `ptxsim_report_clear`.
pub fn clear() {
    if let Ok(context) = crate::context::top() {
        *lock(&context.report) = Report::default();
    }
}

/// `ptxsim_findings_count`.
pub fn count() -> u64 {
    crate::context::top().map_or(0, |context| lock(&context.report).findings)
}
