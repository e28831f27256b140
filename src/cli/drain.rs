//! `cairn drain`.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use cairnfs::config::settings::HumanDuration;
use cairnfs::daemon::control::{Reply, Request};
use cairnfs::replicate::DrainProgress;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::print::Format;
use super::target::Target;
use super::{Global, Outcome, print};

#[derive(Debug, Args)]
pub struct DrainArguments {
    #[command(flatten)]
    target: Target,
    /// Give up after so long, such as 90s or 10m, with exit code 3
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
}

pub fn run(global: &Global, arguments: &DrainArguments) -> Result<Outcome> {
    let mounted = arguments.target.mounted(global)?;
    let timeout_ms = arguments.timeout.map(|HumanDuration(span)| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let mut display = Display::new(global.format());
    let reply = mounted.client.ask(Request::Drain { timeout_ms }, |reply| {
        if let Reply::Draining { left, sent, rate, trouble } = reply {
            display.show(left, *sent, *rate, trouble.as_deref());
        }
    })?;
    display.finish();
    let name = &mounted.record.name;
    match reply {
        Reply::Done => {
            let value = serde_json::json!({ "drive": name, "drained": true });
            print::result(global.format(), &value, |_| format!("the remote has everything of {name}"))?;
            Ok(Outcome::Done)
        }
        Reply::Incomplete { left, reason } => {
            let value = serde_json::json!({ "drive": name, "drained": false, "left": left, "reason": reason });
            print::result(global.format(), &value, |_| format!("{} only here: {reason}", amount(&left)))?;
            Ok(Outcome::Incomplete)
        }
        _ => bail!("the process of drive {name:?} gave an answer that makes no sense; is it of another version?"),
    }
}

fn amount(left: &DrainProgress) -> String {
    if left.files_left == 0 {
        return "changes of names and attributes are".to_owned();
    }
    let verb = if left.files_left == 1 { "is" } else { "are" };
    format!("{} ({}) {verb}", print::count(left.files_left, "file"), print::size(left.bytes_left))
}

/// A bar on a terminal, lines elsewhere, nothing beside JSON.
enum Display {
    Bar { bar: ProgressBar, trouble: Option<String> },
    Lines(Option<(DrainProgress, Option<String>)>),
    Nothing,
}

impl Display {
    fn new(format: Format) -> Self {
        if format == Format::Json {
            return Self::Nothing;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines(None);
        }
        let bar = ProgressBar::new(0);
        // A message that is too long for the terminal is cut, so that the bar stays one line.
        let style = ProgressStyle::with_template("{bar:40} {wide_msg}").expect("the template is a constant");
        bar.set_style(style.progress_chars("=> "));
        Self::Bar { bar, trouble: None }
    }

    /// Shows how far it is, and what keeps it from going on.
    fn show(&mut self, left: &DrainProgress, sent: u64, rate: u64, trouble: Option<&str>) {
        match self {
            Self::Nothing => {}
            Self::Lines(last) => {
                let news = Some((*left, trouble.map(str::to_owned)));
                if *last != news {
                    let trouble = trouble.map_or(String::new(), |trouble| format!("; {trouble}"));
                    let amount = amount(left);
                    let amount = amount.trim_end_matches(" is").trim_end_matches(" are");
                    print::note(&format!("{amount} left{trouble}"));
                    *last = news;
                }
            }
            Self::Bar { bar, trouble: last } => {
                if last.as_deref() != trouble {
                    *last = trouble.map(str::to_owned);
                    if let Some(trouble) = trouble {
                        bar.println(trouble);
                    }
                }
                // A file is left until the whole of it is there, so what was sent says more; what is written meanwhile makes
                // the whole larger, and what compresses or is there already makes it smaller.
                let whole = bar.length().unwrap_or(0).max(left.bytes_left);
                bar.set_length(whole);
                bar.set_position(sent.max(whole - left.bytes_left).min(whole));
                let files = print::count(left.files_left, "file");
                let left = print::size(left.bytes_left);
                bar.set_message(format!("{files} ({left}) left, {} sent, {}/s", print::size(sent), print::size(rate)));
            }
        }
    }

    fn finish(&self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}
