//! What the daemon counts, and its text form for Prometheus.
//!
//! Names are kube-proxy's where they mean the same.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upper bounds of the duration buckets, seconds.
const BOUNDS: [f64; 12] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Per bound, not cumulative.
    counts: [u64; BOUNDS.len()],
    sum_seconds: f64,
    count: u64,
}

impl Histogram {
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some((_, count)) = BOUNDS
            .iter()
            .zip(&mut self.counts)
            .find(|(b, _)| seconds <= **b)
        {
            *count += 1;
        }
        self.sum_seconds += seconds;
        self.count += 1;
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fill {
    pub used: u32,
    pub max: u32,
}

/// Counted since the daemon's start, or gauges of now.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub sync_duration: Histogram,
    pub compile_duration: Histogram,
    pub programming_duration: Histogram,
    /// Seconds since 1970.
    pub last_sync: f64,
    pub last_queued: f64,
    pub writes: u64,
    pub write_failures: u64,
    /// By kind of object, in lower case.
    pub changes: BTreeMap<&'static str, u64>,
    pub rejected: BTreeMap<&'static str, u64>,
    pub fills: BTreeMap<&'static str, Fill>,
    /// Writes that a full map refused.
    pub full: BTreeMap<&'static str, u64>,
    /// By what was put back.
    pub repairs: BTreeMap<&'static str, u64>,
    pub swept: u64,
    /// UDP sockets whose backend had gone.
    pub sockets_ended: u64,
    pub endpoints: u64,
    pub endpoints_pending: u64,
    pub source_faults: u64,
    /// What does not fit into the maps, or is claimed twice.
    pub problems: u64,
    pub generation: u32,
}

/// One metric family in the making.
struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'a str, kind: &str, help: &str) -> Self {
        write_to(
            out,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
        Self { out, name }
    }

    fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        let name = self.name;
        self.line(name, labels, value);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        if !labels.is_empty() {
            self.out.push('{');
            for (index, (label, text)) in labels.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let text = text
                    .replace('\\', "\\\\")
                    .replace('"', "\\\"")
                    .replace('\n', "\\n");
                write_to(self.out, format_args!("{comma}{label}=\"{text}\""));
            }
            self.out.push('}');
        }
        write_to(self.out, format_args!(" {value}\n"));
    }
}

fn write_to(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text)
        .expect("writing to a String cannot fail");
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
const fn float(value: u64) -> f64 {
    value as f64
}

impl Metrics {
    /// `packets`: (hook, counter, is a drop, packets).
    pub fn render(&self, packets: &[(&str, &str, bool, u64)]) -> String {
        let mut out = String::with_capacity(8192);
        self.render_sync(&mut out);
        self.render_fill(&mut out);
        self.render_faults(&mut out);
        render_packets(&mut out, packets);
        render_process(&mut out);
        out
    }

    fn render_sync(&self, out: &mut String) {
        histogram(
            out,
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time from taking changes up to the data path being in step with them",
            &self.sync_duration,
        );
        histogram(
            out,
            "fairlead_compile_duration_seconds",
            "Time to compute tables from the state",
            &self.compile_duration,
        );
        histogram(
            out,
            "kubeproxy_network_programming_duration_seconds",
            "Time from the change that an EndpointSlice tells of up to the data path being in step with it",
            &self.programming_duration,
        );
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        Family::new(out, name, "gauge", "When the data path was last in step")
            .value(&[], self.last_sync);
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        Family::new(out, name, "gauge", "When a change was last taken up")
            .value(&[], self.last_queued);
        for (kind, name) in [
            (
                "service",
                "kubeproxy_sync_proxy_rules_service_changes_total",
            ),
            (
                "endpointslice",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            ),
        ] {
            let count = self.changes.get(kind).copied().unwrap_or_default();
            Family::new(out, name, "counter", "Changes taken up").value(&[], float(count));
        }
        let mut family = Family::new(
            out,
            "fairlead_changes_total",
            "counter",
            "Changes taken up, by kind",
        );
        for (kind, count) in &self.changes {
            family.value(&[("kind", kind)], float(*count));
        }
        let name = "fairlead_map_writes_total";
        Family::new(
            out,
            name,
            "counter",
            "Elements written to or removed from maps",
        )
        .value(&[], float(self.writes));
        let name = "fairlead_map_write_failures_total";
        Family::new(out, name, "counter", "Elements that could not be written")
            .value(&[], float(self.write_failures));
    }

    fn render_fill(&self, out: &mut String) {
        let mut family = Family::new(out, "fairlead_map_entries", "gauge", "Elements in use");
        for (map, fill) in &self.fills {
            family.value(&[("map", map)], fill.used.into());
        }
        let mut family = Family::new(
            out,
            "fairlead_map_max_entries",
            "gauge",
            "Elements there is room for",
        );
        for (map, fill) in &self.fills {
            family.value(&[("map", map)], fill.max.into());
        }
        let mut family = Family::new(
            out,
            "fairlead_map_full_total",
            "counter",
            "Writes that a full map refused",
        );
        for (map, count) in &self.full {
            family.value(&[("map", map)], float(*count));
        }
    }

    fn render_faults(&self, out: &mut String) {
        let mut family = Family::new(
            out,
            "fairlead_rejected_objects",
            "gauge",
            "Objects not in force as written",
        );
        for (kind, count) in &self.rejected {
            family.value(&[("kind", kind)], float(*count));
        }
        let mut family = Family::new(
            out,
            "fairlead_repairs_total",
            "counter",
            "What was tampered with and put back",
        );
        for (what, count) in &self.repairs {
            family.value(&[("what", what)], float(*count));
        }
        for (name, kind, help, value) in [
            (
                "fairlead_endpoints",
                "gauge",
                "Pods attached to this node",
                float(self.endpoints),
            ),
            (
                "fairlead_endpoints_pending",
                "gauge",
                "Attached pods that no source knows yet",
                float(self.endpoints_pending),
            ),
            (
                "fairlead_source_faults",
                "gauge",
                "Files, documents and watches that cannot be read",
                float(self.source_faults),
            ),
            (
                "fairlead_problems",
                "gauge",
                "What does not fit into the maps or is claimed twice; `status` names it",
                float(self.problems),
            ),
            (
                "fairlead_flows_swept_total",
                "counter",
                "Ended flows removed",
                float(self.swept),
            ),
            (
                "fairlead_udp_sockets_ended_total",
                "counter",
                "UDP sockets whose connection was ended because their Service had lost the backend",
                float(self.sockets_ended),
            ),
            (
                "fairlead_policy_generation",
                "gauge",
                "Counts policy changes; a flow judged under another is judged again",
                self.generation.into(),
            ),
        ] {
            Family::new(out, name, kind, help).value(&[], value);
        }
    }
}

fn histogram(out: &mut String, name: &str, help: &str, histogram: &Histogram) {
    let mut family = Family::new(out, name, "histogram", help);
    let bucket = format!("{name}_bucket");
    let mut cumulative = 0;
    for (bound, count) in BOUNDS.iter().zip(histogram.counts) {
        cumulative += count;
        family.line(&bucket, &[("le", &bound.to_string())], float(cumulative));
    }
    family.line(&bucket, &[("le", "+Inf")], float(histogram.count));
    family.line(&format!("{name}_sum"), &[], histogram.sum_seconds);
    family.line(&format!("{name}_count"), &[], float(histogram.count));
}

fn render_packets(out: &mut String, packets: &[(&str, &str, bool, u64)]) {
    for (name, label, drops, help) in [
        (
            "fairlead_packets_total",
            "outcome",
            false,
            "Packets by what was done with them",
        ),
        (
            "fairlead_drops_total",
            "reason",
            true,
            "Packets dropped, by reason",
        ),
    ] {
        let mut family = Family::new(out, name, "counter", help);
        for (hook, counter, is_drop, count) in packets {
            if *is_drop == drops {
                family.value(&[("hook", hook), (label, counter)], float(*count));
            }
        }
    }
}

/// The standard process metrics, as far as /proc gives them.
fn render_process(out: &mut String) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return;
    };
    // Fields 14 and 15 (user and system ticks) and 24 (resident pages), counted
    // from 1; the name in field 2 may hold blanks but ends with the last ')'.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let number = |field: usize| -> u64 {
        let text = fields.get(field - 3).copied().unwrap_or_default();
        text.parse().unwrap_or_default()
    };
    let ticks = rustix::param::clock_ticks_per_second();
    let page = rustix::param::page_size() as u64;
    let name = "process_cpu_seconds_total";
    Family::new(out, name, "counter", "User and system time")
        .value(&[], float(number(14) + number(15)) / float(ticks));
    let name = "process_resident_memory_bytes";
    Family::new(out, name, "gauge", "Resident memory").value(&[], float(number(24) * page));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_counts_all() {
        let mut histogram = Histogram::default();
        for ms in [1, 1, 40, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut out = String::new();
        super::histogram(&mut out, "x", "h", &histogram);
        assert!(out.contains("x_bucket{le=\"0.0005\"} 0\n"), "{out}");
        assert!(out.contains("x_bucket{le=\"0.001\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{le=\"0.05\"} 3\n"), "{out}");
        assert!(out.contains("x_bucket{le=\"30\"} 3\n"), "{out}");
        assert!(
            out.contains("x_bucket{le=\"+Inf\"} 4\nx_sum 60.042\nx_count 4\n"),
            "{out}"
        );
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let mut metrics = Metrics::default();
        metrics.changes.insert("pod", 3);
        metrics.fills.insert("FLOWS_V4", Fill { used: 1, max: 2 });
        let text = metrics.render(&[("pod_out", "policy_egress", true, 7)]);
        assert!(
            text.contains("fairlead_drops_total{hook=\"pod_out\",reason=\"policy_egress\"} 7\n")
        );
        assert!(text.contains("fairlead_map_entries{map=\"FLOWS_V4\"} 1\n"));
        assert!(text.contains("process_resident_memory_bytes "));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut out = String::new();
        Family::new(&mut out, "m", "gauge", "h").value(&[("l", "a\"b\\c\n")], 1.0);
        assert!(out.ends_with("m{l=\"a\\\"b\\\\c\\n\"} 1\n"), "{out}");
    }
}
