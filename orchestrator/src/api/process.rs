//! What the kernel says about this process, under the usual `process_*` names.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Ticks per second in `/proc`: part of the kernel's interface.
const TICKS: f64 = 100.0;

/// Reads `/proc` whenever the metrics are read.
#[derive(Debug)]
pub(super) struct Process;

/// Of `/proc/self`.
#[derive(Debug, Default)]
struct Figures {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_files: f64,
    files_max: f64,
}

impl Figures {
    fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut figures = Self::parse(
            &text("/proc/self/stat"),
            &text("/proc/self/status"),
            &text("/proc/self/limits"),
            &text("/proc/stat"),
        );
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        figures.open_files = f64::from(u32::try_from(files).unwrap_or(u32::MAX));
        figures
    }

    /// Pure; what is not there is 0.
    fn parse(stat: &str, status: &str, limits: &str, machine: &str) -> Self {
        // The name in parentheses may hold anything; fields count from behind it.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let field = |number: usize| -> f64 {
            let text = behind.split_whitespace().nth(number - 3);
            text.and_then(|text| text.parse().ok()).unwrap_or(0.0)
        };
        let kilobytes = |name: &str| 1024.0 * after(status, name);
        Self {
            cpu_seconds: (field(14) + field(15)) / TICKS,
            start_seconds: after(machine, "btime") + field(22) / TICKS,
            resident_bytes: kilobytes("VmRSS:"),
            virtual_bytes: kilobytes("VmSize:"),
            open_files: 0.0,
            files_max: after(limits, "Max open files"),
        }
    }
}

/// The number behind the name that a line begins with.
fn after(text: &str, name: &str) -> f64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let number = lines.next().and_then(|rest| rest.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let figures = Figures::read();
        let cpu = ConstCounter::new(figures.cpu_seconds);
        let help = "User and system CPU time";
        let name = "process_cpu_seconds";
        cpu.encode(encoder.encode_descriptor(name, help, None, cpu.metric_type())?)?;
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "Start, in seconds since 1970",
                figures.start_seconds,
            ),
            (
                "process_resident_memory_bytes",
                "Memory in RAM",
                figures.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Address space",
                figures.virtual_bytes,
            ),
            ("process_open_fds", "Open files", figures.open_files),
            (
                "process_max_fds",
                "Files that may be open",
                figures.files_max,
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4 1 2 3 4 250 150 0 0 20 0 9 0 500 1 2";
        let status = "Name:\tx\nVmSize:\t  2000 kB\nVmRSS:\t 1000 kB\n";
        let limits = "Max open files            1024                 4096                 files\n";
        let figures = Figures::parse(stat, status, limits, "cpu 1\nbtime 1000\n");
        assert!((figures.cpu_seconds - 4.0).abs() < 1e-9);
        assert!((figures.start_seconds - 1005.0).abs() < 1e-9);
        assert!((figures.resident_bytes - 1_024_000.0).abs() < 1e-3);
        assert!((figures.files_max - 1024.0).abs() < 1e-9);
        let own = Figures::read();
        assert!(own.open_files > 2.0 && own.resident_bytes > 1e6 && own.start_seconds > 1e9);
    }
}
