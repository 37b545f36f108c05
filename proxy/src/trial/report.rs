//! Outcomes of a trial: as a table, as JSON, as `JUnit` XML.

use std::fmt::Write as _;

use proxy_ebpf::addr::proto;
use serde_json::{Value, json};

use super::Case;
use crate::explain::{Explanation, Packet};
use crate::model::ObjectName;

/// What became of one packet of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub case: Case,
    pub packet: Packet,
    /// What the programs did.
    pub allowed: bool,
    pub explanation: Explanation,
}

impl Outcome {
    /// As expected?
    pub fn is_good(&self) -> bool {
        self.allowed == self.case.expect_allowed
    }

    /// What decided: the direction that denies, or both where both allow.
    pub fn because(&self) -> String {
        let (egress, ingress) = (&self.explanation.egress, &self.explanation.ingress);
        let mut because = match (egress.reason.allows(), ingress.reason.allows()) {
            (Some(false), _) => format!("egress {}", egress.reason),
            (_, Some(false)) => format!("ingress {}", ingress.reason),
            _ => format!("egress: {}; ingress: {}", egress.reason, ingress.reason),
        };
        if self.explanation.allows() != self.allowed {
            because.push_str(" (but the kernel's programs decided otherwise)");
        }
        because
    }

    fn family(&self) -> &'static str {
        if self.packet.to.is_ipv6() {
            "IPv6"
        } else {
            "IPv4"
        }
    }
}

const fn verdict(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

/// One line per packet, columns aligned, and a summary.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut rows = vec![
        [
            "", "FROM", "TO", "PORT", "FAMILY", "EXPECTED", "VERDICT", "BECAUSE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(outcomes.iter().map(|outcome| {
        [
            if outcome.is_good() { "ok" } else { "FAILED" }.to_owned(),
            outcome.case.from.to_string(),
            outcome.case.to.to_string(),
            outcome.case.port_text.clone(),
            outcome.family().to_owned(),
            verdict(outcome.case.expect_allowed).to_owned(),
            verdict(outcome.allowed).to_owned(),
            outcome.because(),
        ]
    }));
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    let mut text = align(&rows);
    let count = outcomes.len();
    writeln!(text, "{count} packets, {failed} not as expected")
        .expect("writing to a String cannot fail");
    text
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An object with a list of packets and the number not as expected.
pub fn json(outcomes: &[Outcome]) -> Value {
    let packets = outcomes.iter().map(|outcome| {
        json!({
            "test": outcome.case.test,
            "from": outcome.case.from.to_string(),
            "to": outcome.case.to.to_string(),
            "port": outcome.case.port_text,
            "sourceAddress": outcome.packet.from,
            "destinationAddress": outcome.packet.to,
            "expected": verdict(outcome.case.expect_allowed),
            "verdict": verdict(outcome.allowed),
            "egress": outcome.explanation.egress.reason.to_string(),
            "ingress": outcome.explanation.ingress.reason.to_string(),
            "passed": outcome.is_good(),
        })
    });
    let packets: Vec<Value> = packets.collect();
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    json!({"packets": packets, "failed": failed})
}

/// One test suite; a test case per packet.
pub fn junit(outcomes: &[Outcome]) -> String {
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"fairlead policy test\" tests=\"{}\" failures=\"{failed}\">\n",
        outcomes.len()
    );
    for outcome in outcomes {
        let case = &outcome.case;
        let name = format!(
            "{} to {} {} {}",
            case.from,
            case.to,
            case.port_text,
            outcome.family()
        );
        let (class, name) = (escape(&case.test), escape(&name));
        let open = format!("  <testcase classname=\"{class}\" name=\"{name}\"");
        let line = if outcome.is_good() {
            format!("{open}/>\n")
        } else {
            let (expected, is) = (verdict(case.expect_allowed), verdict(outcome.allowed));
            let because = escape(&outcome.because());
            format!(
                "{open}>\n    <failure message=\"expected {expected}, was {is}\">{because}</failure>\n  </testcase>\n"
            )
        };
        text.push_str(&line);
    }
    text.push_str("</testsuite>\n");
    text
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Who reaches whom on one port. Row: from; column: to; `None`: no common family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub pods: Vec<ObjectName>,
    pub rows: Vec<Vec<Option<bool>>>,
}

impl Matrix {
    /// Rows are numbered; columns carry the numbers. `X` reaches, `.` does not.
    pub fn table(&self) -> String {
        let longest = self.pods.iter().map(|pod| pod.to_string().len()).max();
        let (name_width, width) = (longest.unwrap_or(0), self.pods.len().to_string().len() + 1);
        let mut text = format!("{:name_width$} {:>width$}", "from \\ to", "");
        for column in 1..=self.pods.len() {
            write!(text, "{column:>width$}").expect("writing to a String cannot fail");
        }
        text.push('\n');
        for (row, (pod, cells)) in (1..).zip(self.pods.iter().zip(&self.rows)) {
            write!(text, "{:name_width$} {row:>width$}", pod.to_string())
                .expect("writing to a String cannot fail");
            for cell in cells {
                let mark = match cell {
                    Some(true) => "X",
                    Some(false) => ".",
                    None => "-",
                };
                write!(text, "{mark:>width$}").expect("writing to a String cannot fail");
            }
            text.push('\n');
        }
        text
    }

    /// `[{from, to, verdict}]`, without pairs that have no common family.
    pub fn json(&self) -> Value {
        let mut pairs = Vec::new();
        for (from, cells) in self.pods.iter().zip(&self.rows) {
            for (to, cell) in self.pods.iter().zip(cells) {
                if let Some(allowed) = cell {
                    let (from, to) = (from.to_string(), to.to_string());
                    pairs.push(json!({"from": from, "to": to, "verdict": verdict(*allowed)}));
                }
            }
        }
        Value::Array(pairs)
    }
}

/// A port as in cases: `80/tcp`.
pub fn port_text(protocol: u8, port: u16) -> String {
    match protocol {
        proto::TCP => format!("{port}/tcp"),
        proto::UDP => format!("{port}/udp"),
        proto::SCTP => format!("{port}/sctp"),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        other => format!("protocol {other}"),
    }
}
