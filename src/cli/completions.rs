//! `cairn completions`.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Outcome;

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell; for bash, for example: cairn completions bash > ~/.local/share/bash-completion/completions/cairn
    shell: Shell,
}

pub fn run<A: CommandFactory>(arguments: &CompletionsArguments) -> Result<Outcome> {
    clap_complete::generate(arguments.shell, &mut A::command(), "cairn", &mut std::io::stdout());
    Ok(Outcome::Done)
}
