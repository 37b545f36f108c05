//! Builds the kernel object from source and leaves it where `include_bytes!`
//! finds it. Two toolchains can: see [`Toolchain::find`].
//!
//! Debug builds carry a second object, whose programs tell each drop in words
//! (`cfg(logging_object)`).

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let variable = |name| env::var_os(name).ok_or(format!("{name} is not set"));
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    for source in ["Cargo.toml", "Cargo.lock", "proxy-ebpf"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    println!("cargo::rerun-if-env-changed=FAIRLEAD_BPF_CARGO");

    println!("cargo::rustc-check-cfg=cfg(logging_object)");

    let toolchain = Toolchain::find()?;
    build_object(&toolchain, "kernel", &workspace, &out)?;
    if variable("PROFILE")? == "debug" {
        build_object(&toolchain, "log", &workspace, &out)?;
        println!("cargo::rustc-cfg=logging_object");
    }
    Ok(())
}

/// Builds the object with a feature of `proxy-ebpf` as `<out>/<feature>/dataplane`.
fn build_object(
    toolchain: &Toolchain,
    feature: &str,
    workspace: &Path,
    out: &Path,
) -> Result<(), String> {
    // Beside the profiles, so that check, build and release share one build.
    let target_dir = out.ancestors().nth(4).unwrap_or(out).join("bpf");
    let mut cargo = Command::new(&toolchain.cargo);
    // Of the outer cargo's environment, its compiler and flags must not leak in.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let ours = name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUST");
        if ours && !name.starts_with("RUSTUP_") {
            cargo.env_remove(&*name);
        }
    }
    if let Some(rustc) = &toolchain.rustc {
        cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    }
    cargo
        .args(toolchain.arguments)
        .args([
            "build",
            "--package",
            "proxy-ebpf",
            "--bin",
            "dataplane",
            "--features",
            feature,
        ])
        .args([
            "--profile",
            "bpf",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
            "--locked",
            "-Z",
            "unstable-options",
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        // Copied while cargo holds the lock: a build with another feature at the
        // same time does not come between.
        .arg("--artifact-dir")
        .arg(out.join(feature))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Clink-arg=--btf\x1f-Ctarget-cpu=v3",
        )
        .current_dir(workspace);
    let output = cargo
        .output()
        .map_err(|error| format!("{cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the kernel programs failed\n{}\nhint: `cargo xtask setup` installs the toolchain",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(())
}

/// A cargo that can build `core` for the BPF target: the compiler's own
/// standard library source must be there.
struct Toolchain {
    cargo: PathBuf,
    /// Set where the cargo would not find its compiler by itself.
    rustc: Option<PathBuf>,
    arguments: &'static [&'static str],
}

impl Toolchain {
    /// A rustup nightly with `rust-src`, else the distribution's pair
    /// (Debian: rustc-web, cargo-web, rust-web-src).
    fn find() -> Result<Self, String> {
        if let Some(cargo) = env::var_os("FAIRLEAD_BPF_CARGO") {
            return Ok(Self {
                cargo: cargo.into(),
                rustc: None,
                arguments: &[],
            });
        }
        if has_source(Command::new("rustup").args(["run", "nightly", "rustc"])) {
            return Ok(Self {
                cargo: "rustup".into(),
                rustc: None,
                arguments: &["run", "nightly", "cargo"],
            });
        }
        let rustc = Path::new("/usr/bin/rustc");
        if rustc.exists() && has_source(&mut Command::new(rustc)) {
            return Ok(Self {
                cargo: "/usr/bin/cargo".into(),
                rustc: Some(rustc.into()),
                arguments: &[],
            });
        }
        Err(
            "no toolchain for the kernel programs: neither a rustup nightly with rust-src nor \
             the distribution's rustc with its library source\nhint: run `cargo xtask setup`"
                .into(),
        )
    }
}

/// Whether the compiler that `rustc` runs has the source of its library.
fn has_source(rustc: &mut Command) -> bool {
    let Ok(output) = rustc.args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success()
        && Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
}
