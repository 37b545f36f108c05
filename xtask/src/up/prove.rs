//! The proof: every pod calls every pod, directly and through its Service, and
//! the outcome must be what the policies say.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};

use super::PODS;
use super::place::{PORT, Place, Pod};
use crate::step;

/// Calls at a time.
const CALLERS: usize = 8;

/// How a pod is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    V4,
    V6,
    Service,
}

impl Way {
    const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Service];

    fn url(self, to: &Pod) -> String {
        match self {
            Self::V4 => format!("http://{}:{PORT}/", to.v4),
            Self::V6 => format!("http://[{}]:{PORT}/", to.v6),
            Self::Service => format!("http://{}/", to.service),
        }
    }
}

/// What a call met.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Met {
    Answer { right: bool, millis: u128 },
    Refused,
    Silence,
    Trouble(String),
}

impl Met {
    fn passed(&self) -> bool {
        matches!(self, Self::Answer { right: true, .. })
    }

    fn text(&self) -> String {
        match self {
            Self::Answer {
                right: true,
                millis,
            } => format!("yes, {millis} ms"),
            Self::Answer { right: false, .. } => "WRONG POD".into(),
            Self::Refused => "refused".into(),
            Self::Silence => "no".into(),
            Self::Trouble(what) => what.clone(),
        }
    }
}

type Cell = (usize, usize, Way);

/// Makes all connections, prints the table; whether all is as the policies say.
pub(super) fn run(place: &Place) -> Result<bool> {
    let results = step::step("real connections", || {
        let results = call_all(place);
        let text = format!("{} made", results.len());
        Ok((results, text))
    })?;
    let mut right = true;
    step::data(&row([
        "from",
        "to",
        "IPv4",
        "IPv6",
        "Service",
        "by the policies",
    ]));
    for (i, from) in PODS.iter().enumerate() {
        for (j, to) in PODS.iter().enumerate() {
            let cells = Way::ALL.map(|way| &results[&(i, j, way)]);
            let (allowed, reason) = explain(place, from, to)?;
            let agree = cells.iter().all(|met| met.passed() == allowed);
            right &= agree;
            let verdict = if agree {
                reason
            } else {
                format!("{reason}  <-- DISAGREES")
            };
            let texts = cells.map(Met::text);
            step::data(&row([
                &from.title(),
                &to.title(),
                &texts[0],
                &texts[1],
                &texts[2],
                &verdict,
            ]));
        }
    }
    Ok(right)
}

fn row(columns: [&str; 6]) -> String {
    let [from, to, v4, v6, service, verdict] = columns;
    format!("{from:10} {to:10} {v4:12} {v6:12} {service:12} {verdict}")
        .trim_end()
        .to_owned()
}

fn call_all(place: &Place) -> BTreeMap<Cell, Met> {
    let mut cells = Vec::new();
    for from in 0..PODS.len() {
        for to in 0..PODS.len() {
            cells.extend(Way::ALL.map(|way| (from, to, way)));
        }
    }
    let queue = Mutex::new(cells);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                loop {
                    let Some(cell) = queue.lock().expect("no caller panics").pop() else {
                        break;
                    };
                    let (from, to, way) = cell;
                    let met = call(place, &PODS[from], &PODS[to], way);
                    results.lock().expect("no caller panics").insert(cell, met);
                }
            });
        }
    });
    results.into_inner().expect("no caller panics")
}

/// One HTTP request from inside the pod.
fn call(place: &Place, from: &Pod, to: &Pod, way: Way) -> Met {
    const REFUSED: i32 = 7;
    const TIMED_OUT: i32 = 28;
    let started = Instant::now();
    let mut command = place.in_pod(from, "curl");
    command.args(["--silent", "--max-time", "2", "--globoff", &way.url(to)]);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Met::Trouble(error.to_string()),
    };
    match output.status.code() {
        Some(0) => Met::Answer {
            right: String::from_utf8_lossy(&output.stdout).trim() == to.title(),
            millis: started.elapsed().as_millis(),
        },
        Some(REFUSED) => Met::Refused,
        Some(TIMED_OUT) => Met::Silence,
        other => Met::Trouble(format!("curl: {other:?}")),
    }
}

/// What the policies say, and which decide: both directions where both have a say.
fn explain(place: &Place, from: &Pod, to: &Pod) -> Result<(bool, String)> {
    let (from, to, port) = (from.title(), to.title(), format!("{PORT}/tcp"));
    let words = [
        "policy", "explain", "--from", &from, "--to", &to, "--port", &port,
    ];
    let answer = place.ask(&words)?;
    let allowed = answer["allowed"]
        .as_bool()
        .context("`policy explain` gives no verdict")?;
    let path = &answer["paths"][0];
    let mut reasons = Vec::new();
    for (direction, title) in [("egress", "out"), ("ingress", "in")] {
        let side = &path[direction];
        let reason = side["reason"].as_str().unwrap_or_default();
        // Of a refusal the refusing side matters, of a pass the policies that allow.
        let says = if allowed {
            !side["policy"].is_null()
        } else {
            side["allowed"] == false
        };
        if says {
            reasons.push(format!("{title}: {reason}"));
        }
    }
    let reasons = if reasons.is_empty() {
        "allowed: no policy in the way".into()
    } else {
        reasons.join("; ")
    };
    Ok((allowed, reasons))
}
