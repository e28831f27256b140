//! How fast a mounted drive is, and what a large upload or a large tree costs in memory.
//!
//! The speed is measured in rounds. In each, every file system does the same work in turn, so that what else the machine does hits
//! all of them; what counts is the median of the rounds' ratios. The yardsticks are a plain folder on the same disk, and the in-memory
//! file system behind the same driver, which is what the kernel and the driver allow. Run by root it measures root with kernel
//! passthrough and an ordinary user without; run by anybody else, that one without.
//!
//! `cargo bench --bench mount -- [--dir DIR] [--rounds N] [--mib N] [--files N] [--programs N] [--upload-mib N] [--tree N]`. DIR is
//! where the plain folder, the vault and the data directory go, so it says which disk is measured. `--rounds 0` leaves the speed out,
//! `--upload-mib 0` and `--tree 0` (the default) those parts.

mod mounts;
mod work;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use mounts::{Mount, Who};
use work::{Figures, GROUPS, POPULATE, Place, Sizes};

struct Options {
    directory: PathBuf,
    rounds: usize,
    sizes: Sizes,
    upload_mib: usize,
    tree: usize,
    worker: Option<Worker>,
}

/// What a worker process is told.
struct Worker {
    group: String,
    directory: PathBuf,
    backing: PathBuf,
    sources: PathBuf,
}

/// What a row is compared with, and what the ratio is to reach with passthrough and without.
struct Goal {
    name: &'static str,
    yardstick: Yardstick,
    to_reach: [f64; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Yardstick {
    Folder,
    Memory,
}

/// The rows whose names begin so.
const GOALS: [Goal; 10] = [
    Goal { name: "sequential read", yardstick: Yardstick::Folder, to_reach: [0.95, 0.7] },
    Goal { name: "random 4 KiB read", yardstick: Yardstick::Folder, to_reach: [0.95, 0.9] },
    Goal { name: "random 4 KiB write", yardstick: Yardstick::Folder, to_reach: [0.9, 0.5] },
    Goal { name: "sequential write", yardstick: Yardstick::Folder, to_reach: [0.9, 0.7] },
    Goal { name: "4 KiB write + fsync", yardstick: Yardstick::Folder, to_reach: [0.45, 0.4] },
    Goal { name: "SQLite", yardstick: Yardstick::Folder, to_reach: [0.6, 0.5] },
    Goal { name: "create", yardstick: Yardstick::Memory, to_reach: [0.8, 0.8] },
    Goal { name: "rename", yardstick: Yardstick::Memory, to_reach: [0.8, 0.8] },
    Goal { name: "unlink", yardstick: Yardstick::Memory, to_reach: [0.8, 0.8] },
    Goal { name: "", yardstick: Yardstick::Memory, to_reach: [0.8, 0.8] },
];

fn main() -> Result<()> {
    let options = options()?;
    if let Some(worker) = &options.worker {
        let place = Place { directory: &worker.directory, backing: &worker.backing, sources: &worker.sources };
        let figures = work::work(&worker.group, &place, &options.sizes)?;
        return Ok(serde_json::to_writer(std::io::stdout(), &figures)?);
    }
    let scratch = tempfile::Builder::new().prefix("cairn-bench-").tempdir_in(&options.directory)?;
    let place = scratch.path();
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    // Where an ordinary user can reach it.
    let program = place.join("cairn");
    fs::copy(env!("CARGO_BIN_EXE_cairn"), &program)?;
    if options.rounds > 0 {
        speed(&options, place, &program)?;
    }
    if options.upload_mib > 0 {
        upload(&options, place, &program)?;
    }
    if options.tree > 0 {
        tree(&options, place, &program)?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        directory: std::env::temp_dir(),
        rounds: 5,
        sizes: Sizes { mib: 256, files: 4000, tree: 20_000 },
        upload_mib: 0,
        tree: 0,
        worker: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--dir" => options.directory = value()?.into(),
            "--rounds" => options.rounds = value()?.parse()?,
            "--mib" => options.sizes.mib = value()?.parse()?,
            "--files" => options.sizes.files = value()?.parse()?,
            "--programs" => options.sizes.tree = value()?.parse()?,
            "--upload-mib" => options.upload_mib = value()?.parse()?,
            "--tree" => options.tree = value()?.parse()?,
            "--worker" => {
                let (group, directory) = (value()?, value()?.into());
                options.worker = Some(Worker { group, directory, backing: value()?.into(), sources: value()?.into() });
            }
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown argument {other:?}"),
        }
    }
    Ok(options)
}

/// One of the file systems that are compared.
struct System {
    who: Who,
    directory: PathBuf,
    backing: PathBuf,
    /// Keeps it mounted.
    _mount: Option<Mount>,
}

impl System {
    fn folder(place: &Path, who: Who, name: &str) -> Result<Self> {
        let directory = who.directory(place.join(name))?;
        Ok(Self { who, backing: directory.clone(), directory, _mount: None })
    }

    fn mounted(mount: Mount, who: Who) -> Self {
        Self { who, directory: mount.path().to_owned(), backing: mount.data().to_owned(), _mount: Some(mount) }
    }
}

/// Folder, memory and drive, as one user.
fn systems(place: &Path, program: &Path, who: Who) -> Result<[System; 3]> {
    let (suffix, arguments): (_, &[&str]) = match who {
        Who::Us => ("us", &[]),
        Who::Nobody => ("nobody", &["--no-passthrough"]),
    };
    let folder = System::folder(place, who, &format!("folder-{suffix}"))?;
    let memory = Mount::start(program, place, &format!("memory-{suffix}"), who, &["--memory"])?;
    let drive = Mount::start(program, place, &format!("drive-{suffix}"), who, arguments)?;
    // Replication would compete for the same cores: this is about the mount.
    drive.cairn(&["pause"])?;
    Ok([folder, System::mounted(memory, who), System::mounted(drive, who)])
}

fn speed(options: &Options, place: &Path, program: &Path) -> Result<()> {
    let worker = place.join("worker");
    fs::copy(std::env::current_exe()?, &worker)?;
    let sources = place.join("sources");
    fs::create_dir(&sources)?;
    work::prepare(&sources, &options.sizes)?;
    let root = rustix::process::geteuid().is_root();
    let users: &[Who] = if root { &[Who::Us, Who::Nobody] } else { &[Who::Us] };
    let users = users.iter().map(|who| systems(place, program, *who)).collect::<Result<Vec<_>>>()?;
    for system in users.iter().flatten() {
        measure(options, &worker, system, POPULATE, &sources)?;
    }

    let mut order = Vec::new();
    // For each user and kind of work the seconds of folder, memory and drive, round by round.
    let mut seconds: BTreeMap<(usize, String), Vec<[f64; 3]>> = BTreeMap::new();
    for _ in 0..options.rounds {
        for (group, cold) in GROUPS {
            for (user, systems) in users.iter().enumerate() {
                let mut of_systems = Vec::new();
                for system in systems {
                    rustix::fs::sync();
                    if cold && root {
                        // Names and inodes, not pages.
                        fs::write("/proc/sys/vm/drop_caches", "2")?;
                    }
                    of_systems.push(measure(options, &worker, system, group, &sources)?);
                }
                for (((name, folder), (_, memory)), (_, drive)) in
                    of_systems[0].iter().zip(&of_systems[1]).zip(&of_systems[2])
                {
                    if !order.contains(name) {
                        order.push(name.clone());
                    }
                    seconds.entry((user, name.clone())).or_default().push([*folder, *memory, *drive]);
                }
            }
        }
    }
    for (user, systems) in users.iter().enumerate() {
        // The driver says which of the two it does; here it is what was asked for.
        let passthrough = root && systems[2].who == Who::Us;
        println!("{}", if passthrough { "root, passthrough" } else { "ordinary user, no passthrough" });
        println!(
            "{:28} {:>11} {:>11} {:>11} {:>7} {:>7}  to reach",
            "seconds, median", "folder", "memory", "drive", "folder", "memory"
        );
        for name in &order {
            row(name, &seconds[&(user, name.clone())], passthrough);
        }
        println!();
    }
    Ok(())
}

fn measure(options: &Options, worker: &Path, system: &System, group: &str, sources: &Path) -> Result<Figures> {
    let sizes = &options.sizes;
    let mut command = system.who.command(worker);
    command.args(["--mib", &sizes.mib.to_string(), "--files", &sizes.files.to_string()]);
    command.args(["--worker", group]).args([&system.directory, &system.backing]).arg(sources);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{group} failed in {}", system.directory.display());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn row(name: &str, rounds: &[[f64; 3]], passthrough: bool) {
    let median_of = |figure: &dyn Fn(&[f64; 3]) -> f64| median(rounds.iter().map(figure).collect());
    let goal = GOALS.iter().find(|goal| name.starts_with(goal.name)).expect("the last one fits all");
    let ratios = [median_of(&|round| round[0] / round[2]), median_of(&|round| round[1] / round[2])];
    let to_reach = goal.to_reach[usize::from(!passthrough)];
    let (yardstick, ratio) = match goal.yardstick {
        Yardstick::Folder => ("folder", ratios[0]),
        Yardstick::Memory => ("memory", ratios[1]),
    };
    println!(
        "{name:28} {:11.4} {:11.4} {:11.4} {:7.2} {:7.2}  {yardstick} {to_reach:.2} {}",
        median_of(&|round| round[0]),
        median_of(&|round| round[1]),
        median_of(&|round| round[2]),
        ratios[0],
        ratios[1],
        if ratio >= to_reach { "yes" } else { "NO" }
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What memory a large upload takes above an idle process, and how fast it is, vault and cache on one disk.
fn upload(options: &Options, place: &Path, program: &Path) -> Result<()> {
    let mount = Mount::start(program, place, "upload", Who::Us, &[])?;
    let idle = mount.memory("VmRSS")?;
    let started = Instant::now();
    let mut file = File::create(mount.path().join("large"))?;
    let mut block = work::noise(1 << 20);
    for number in 0..options.upload_mib {
        // Nothing repeats, so everything is sent.
        block.chunks_mut(64).for_each(|part| part[0] = part[0].wrapping_add(number as u8 | 1).rotate_left(3));
        file.write_all(&block)?;
    }
    drop(file);
    mount.cairn(&["drain"])?;
    let took = started.elapsed().as_secs_f64();
    let peak = mount.memory("VmHWM")?;
    println!(
        "upload of {} MiB: {:.0} MiB/s, memory {} MiB above idle",
        options.upload_mib,
        options.upload_mib as f64 / took,
        (peak - idle) >> 10
    );
    Ok(())
}

/// How long the mount of a large tree takes, and what memory it has taken once everything was looked at.
fn tree(options: &Options, place: &Path, program: &Path) -> Result<()> {
    {
        let mount = Mount::start(program, place, "tree", Who::Us, &[])?;
        mount.cairn(&["pause"])?;
        for number in 0..options.tree {
            let directory = mount.path().join(format!("{}", number / 1000));
            if number % 1000 == 0 {
                fs::create_dir(&directory)?;
            }
            File::create_new(directory.join(number.to_string()))?;
        }
    }
    let started = Instant::now();
    let mount = Mount::start(program, place, "tree", Who::Us, &[])?;
    let ready = started.elapsed();
    let started = Instant::now();
    count(mount.path(), options.tree)?;
    println!(
        "tree of {} files: mounted in {:.2} s, looked at in {:.1} s, resident {} MiB",
        options.tree,
        ready.as_secs_f64(),
        started.elapsed().as_secs_f64(),
        mount.memory("VmRSS")? >> 10
    );
    Ok(())
}

fn count(directory: &Path, expected: usize) -> Result<()> {
    let mut found = 0;
    for directory in fs::read_dir(directory)? {
        for entry in fs::read_dir(directory?.path())? {
            entry?.metadata()?;
            found += 1;
        }
    }
    ensure!(found == expected, "{found} of {expected} files are there");
    Ok(())
}
