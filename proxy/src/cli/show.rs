//! `status`, `endpoints`, `services`, `policies`, `policy explain`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::client::Client;
use super::table::{self, cell};
use super::{Outcome, Output};
use crate::control::Request;

pub(super) fn print_json(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

/// Asks and prints a list as a table of the given (header, field) columns.
fn list(client: &Client, output: Output, request: &Request, columns: &[(&str, &str)]) -> Outcome {
    let value = client.ask(request)?;
    if output == Output::Json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let header: Vec<&str> = columns.iter().map(|(header, _)| *header).collect();
    let rows = value.as_array().into_iter().flatten();
    let rows = rows.map(|row| {
        columns
            .iter()
            .map(|(_, field)| cell(&row[*field]))
            .collect()
    });
    table::print(&header, &rows.collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn endpoints(client: &Client, output: Output) -> Outcome {
    let columns = [
        ("POD", "pod"),
        ("ADDRESSES", "ips"),
        ("INGRESS", "ingress"),
        ("EGRESS", "egress"),
        ("INTERFACE", "interface"),
        ("SLOT", "slot"),
        ("KNOWN", "known"),
        ("IN KERNEL", "inKernel"),
    ];
    list(client, output, &Request::Endpoints, &columns)
}

pub(super) fn services(client: &Client, output: Output) -> Outcome {
    if output == Output::Json {
        return list(client, output, &Request::Services, &[]);
    }
    let value = client.ask(&Request::Services)?;
    let mut rows = Vec::new();
    for service in value.as_array().into_iter().flatten() {
        let backends: Vec<String> = service["backends"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|b| endpoint_text(&b["address"], &b["port"]))
            .collect();
        rows.push(vec![
            cell(&service["service"]),
            endpoint_text(&service["address"], &service["port"]),
            cell(&service["protocol"]),
            if backends.is_empty() {
                "none: rejected".to_owned()
            } else {
                backends.join(", ")
            },
        ]);
    }
    table::print(&["SERVICE", "ADDRESS", "PROTOCOL", "BACKENDS"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
pub(super) fn endpoint_text(address: &Value, port: &Value) -> String {
    let (address, port) = (cell(address), cell(port));
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

pub(super) fn policies(client: &Client, output: Output) -> Outcome {
    let columns = [
        ("POLICY", "policy"),
        ("INGRESS RULES", "ingressRules"),
        ("EGRESS RULES", "egressRules"),
        ("CLOSED FOR A FAULT", "closedForFault"),
        ("LOCAL PODS", "localPods"),
    ];
    list(client, output, &Request::Policies, &columns)
}

pub(super) fn explain(
    client: &Client,
    output: Output,
    from: String,
    to: String,
    port: String,
) -> Outcome {
    let value = client.ask(&Request::Explain { from, to, port })?;
    if output == Output::Json {
        print_json(&value)?;
    } else {
        let text = value["text"].as_str().unwrap_or_default();
        io::stdout().lock().write_all(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the daemon's state; fails where something is wrong.
pub(super) fn status(client: &Client, output: Output) -> Outcome {
    let status = client.ask(&Request::Report)?;
    if output == Output::Json {
        print_json(&status)?;
    } else {
        io::stdout()
            .lock()
            .write_all(status_text(&status).as_bytes())?;
    }
    let is_well = status["inStep"] == true && status["errors"].as_array().is_none_or(Vec::is_empty);
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Lines of a label and a value.
struct Lines(String);

impl Lines {
    fn line(&mut self, label: &str, value: &str) {
        writeln!(self.0, "{label:<12}{value}").expect("writing to a String cannot fail");
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn status_text(status: &Value) -> String {
    let mut lines = Lines(String::new());
    let state = match (status["synced"] == true, status["inStep"] == true) {
        (false, _) => "waiting for its sources; the pinned data path is left as it is",
        (true, true) => "in step",
        (true, false) => "NOT in step",
    };
    let version = format!("{} (ABI {})", cell(&status["version"]), status["abi"]);
    lines.line("version", &version);
    let pins = cell(&status["pins"]);
    lines.line("data path", &format!("{state}, pinned at {pins}"));
    lines.line("endpoints", &cell(&status["endpoints"]));
    let objects = status["objects"].as_object().into_iter().flatten();
    let objects: Vec<String> = objects
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    lines.line("objects", &objects.join(", "));
    put_sources(&mut lines, status);
    for error in items(&status["errors"]) {
        lines.line("ERROR", &cell(error));
    }
    for (map, fill) in status["maps"].as_object().into_iter().flatten() {
        if fill["used"] != 0 {
            lines.line(
                "map",
                &format!("{map}: {} of {}", fill["used"], fill["max"]),
            );
        }
    }
    for (what, count) in status["repairs"].as_object().into_iter().flatten() {
        lines.line("repaired", &format!("{what}: {count}"));
    }
    for drop in items(&status["drops"]) {
        let (count, hook) = (&drop["packets"], cell(&drop["hook"]));
        let (reason, help) = (cell(&drop["reason"]), cell(&drop["help"]));
        lines.line("dropped", &format!("{reason}: {count} ({hook}): {help}"));
    }
    lines.0
}

/// Sources with their faults, and objects and records that were refused.
fn put_sources(lines: &mut Lines, status: &Value) {
    for source in items(&status["sources"]) {
        let synced = if source["synced"] == true {
            "synced"
        } else {
            "NOT synced"
        };
        lines.line("source", &format!("{}: {synced}", cell(&source["name"])));
        let ignored = source["unsupported"].as_object().into_iter().flatten();
        let ignored: Vec<String> = ignored
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        if !ignored.is_empty() {
            lines.line(
                "  ignored",
                &format!("kinds of no use here: {}", ignored.join(", ")),
            );
        }
        for fault in items(&source["faults"]) {
            let (origin, reason) = (cell(&fault["origin"]), cell(&fault["reason"]));
            lines.line("  fault", &format!("{origin}: {reason}"));
            lines.line("", &format!("  hint: {}", cell(&fault["hint"])));
        }
    }
    for rejected in items(&status["rejected"]) {
        let (object, origin) = (cell(&rejected["object"]), cell(&rejected["origin"]));
        lines.line("rejected", &format!("{object} ({origin})"));
        for error in items(&rejected["errors"]) {
            lines.line(
                "",
                &format!("  {}: {}", cell(&error["path"]), cell(&error["reason"])),
            );
            lines.line("", &format!("  hint: {}", cell(&error["hint"])));
        }
    }
    for error in items(&status["rejectedRecords"]) {
        lines.line("rejected", &cell(error));
    }
}
