//! `flows`: the tracked connections; `flows --follow`: like tcpdump, but with
//! names and verdicts.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::client::Client;
use super::show::{endpoint_text, print_json};
use super::table::{self, cell};
use super::{Outcome, Output};
use crate::control::Request;

pub(super) fn flows(client: &Client, output: Output, follow: bool, dropped: bool) -> Outcome {
    if !follow {
        return tracked(client, output);
    }
    client.follow(&Request::Flows, |line| {
        let value: Value = serde_json::from_str(line)?;
        if dropped && value["verdict"] == "allowed" {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match output {
            Output::Json => writeln!(out, "{line}"),
            _ => writeln!(out, "{}", text(&value)),
        }?;
        out.flush()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn tracked(client: &Client, output: Output) -> Outcome {
    let value = client.ask(&Request::Tracked)?;
    if output == Output::Json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let flows: Vec<&Value> = value["flows"].as_array().into_iter().flatten().collect();
    let rows = flows.iter().map(|flow| {
        vec![
            cell(&flow["protocol"]),
            cell(&flow["state"]),
            end(&flow["from"]),
            end(&flow["to"]),
            match &flow["service"] {
                Value::Null => "-".to_owned(),
                service => end(service),
            },
            format!("{} s", flow["idleSeconds"]),
        ]
    });
    let header = ["PROTOCOL", "STATE", "FROM", "TO", "SERVICE", "IDLE"];
    table::print(&header, &rows.collect::<Vec<_>>())?;
    let more = value["count"].as_u64().unwrap_or(0) - flows.len() as u64;
    if more > 0 {
        writeln!(io::stdout().lock(), "and {more} more")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `shop/web (10.1.0.2:4000)`, or the address alone.
fn end(end: &Value) -> String {
    let address = endpoint_text(&end["address"], &end["port"]);
    match end["name"].as_str() {
        Some(name) => format!("{name} ({address})"),
        None => address,
    }
}

/// `12:00:01.250 dropped TCP shop/web (10.1.0.2:4000) -> shop/db (10.1.0.3:80) policy_ingress: ...`
fn text(flow: &Value) -> String {
    if let Some(missed) = flow["missed"].as_u64() {
        return format!("({missed} flows were not shown: this terminal is too slow)");
    }
    let mut text = format!(
        "{} {} {} {} -> {}",
        clock(flow["time"].as_f64().unwrap_or_default()),
        cell(&flow["verdict"]),
        cell(&flow["protocol"]),
        end(&flow["from"]),
        end(&flow["to"]),
    );
    if flow["verdict"] != "allowed" && flow["verdict"] != flow["reason"] {
        put(&mut text, format_args!(" {}", cell(&flow["reason"])));
    }
    let is_decided = !flow["egress"].is_null() || !flow["ingress"].is_null();
    if let (Some(help), false) = (flow["help"].as_str(), is_decided) {
        put(&mut text, format_args!(": {help}"));
    }
    for direction in ["egress", "ingress"] {
        if let Some(decided) = flow[direction].as_str() {
            put(&mut text, format_args!("; {direction}: {decided}"));
        }
    }
    text
}

fn put(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more)
        .expect("writing to a String cannot fail");
}

/// Time of day, UTC.
fn clock(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time since 1970"
    )]
    let ms = (seconds * 1000.0) as u64;
    let (s, ms) = (ms / 1000, ms % 1000);
    format!(
        "{:02}:{:02}:{:02}.{ms:03}",
        s / 3600 % 24,
        s / 60 % 60,
        s % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_one_line_with_names_and_reason() {
        let flow = serde_json::json!({
            "time": 3_661.5, "verdict": "dropped", "reason": "policy_ingress", "protocol": "TCP",
            "help": "the policies say so",
            "from": {"address": "10.1.0.2", "port": 4000, "name": "shop/web"},
            "to": {"address": "fd00::3", "port": 80, "name": null},
            "ingress": "no rule of shop/db allows it",
        });
        assert_eq!(
            text(&flow),
            "01:01:01.500 dropped TCP shop/web (10.1.0.2:4000) -> [fd00::3]:80 policy_ingress; \
             ingress: no rule of shop/db allows it"
        );
    }

    #[test]
    fn what_no_policy_decided_is_told_in_words() {
        let flow = |verdict: &str, reason: &str| {
            let flow = serde_json::json!({
                "time": 0, "verdict": verdict, "reason": reason, "protocol": "TCP", "help": "why",
                "from": {"address": "10.1.0.2", "port": 1}, "to": {"address": "10.1.0.3", "port": 2},
            });
            text(&flow).rsplit_once(":2").unwrap().1.to_owned()
        };
        assert_eq!(flow("rejected", "rejected"), ": why");
        assert_eq!(flow("dropped", "spoofed_mac"), " spoofed_mac: why");
    }
}
