//! `cargo xtask`: argv to task. Each task is a module; none knows of another
//! but through `setup::ensure` and `build::binaries`.

mod bench;
mod build;
mod exec;
mod project;
mod schema;
mod setup;
mod step;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything there is to type in this repository.
///
/// On a machine that has only Rust, two commands are enough:
///
///   cargo xtask up      build all, start a node with pods and policies, prove it works
///   cargo xtask test    lints and every test, the same that CI runs
///
/// Both install what they need first (see `cargo xtask setup --help`).
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Args),
    Build(build::Args),
    Test(test::Args),
    Bench(bench::Args),
    Up(up::UpArgs),
    Down(up::DownArgs),
    /// Generate the table of schema facts that the orchestrator embeds
    Schema,
    /// Check the repository's own rules (part of `test lint`)
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.task {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Up(args) => up::up(&args),
        Task::Down(args) => up::down(&args),
        Task::Schema => schema::run(),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            step::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
