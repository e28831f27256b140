//! How fast a mounted drive is, against a plain folder on the same disk and against the in-memory file system behind the same
//! driver, and what a large upload or a large tree costs in memory.
//!
//! `cargo bench --bench mount [-- --dir DIR --mib N --files N --upload-mib N --tree N --json]`. DIR is where the plain folder, the vault
//! and the data directory go, so it says which disk is measured. `--upload-mib 0` and `--tree 0` (the default) leave those parts out.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::json;

struct Options {
    directory: PathBuf,
    mib: usize,
    files: usize,
    upload_mib: usize,
    tree: usize,
    json: bool,
}

fn main() -> Result<()> {
    let options = options()?;
    let place = tempfile::Builder::new().prefix("cairn-bench-").tempdir_in(&options.directory)?;
    let mut rows = Vec::new();
    speed(&options, place.path(), &mut rows)?;
    if options.upload_mib > 0 {
        upload(&options, place.path(), &mut rows)?;
    }
    if options.tree > 0 {
        tree(&options, place.path(), &mut rows)?;
    }
    if options.json {
        let rows: Vec<_> = rows.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        for (name, value) in rows {
            println!("{name:44} {value}");
        }
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options =
        Options { directory: std::env::temp_dir(), mib: 512, files: 10_000, upload_mib: 0, tree: 0, json: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--dir" => options.directory = value()?.into(),
            "--mib" => options.mib = value()?.parse()?,
            "--files" => options.files = value()?.parse()?,
            "--upload-mib" => options.upload_mib = value()?.parse()?,
            "--tree" => options.tree = value()?.parse()?,
            "--json" => options.json = true,
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown argument {other:?}"),
        }
    }
    Ok(options)
}

/// A mounted file system, unmounted when dropped.
struct Mount {
    child: Child,
    data: PathBuf,
    path: PathBuf,
}

impl Mount {
    fn start(place: &Path, name: &str, arguments: &[&str]) -> Result<Self> {
        let path = place.join(format!("{name}-mount"));
        fs::create_dir_all(&path)?;
        let data = place.join(format!("{name}-data"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_cairn"))
            .arg("mount")
            .args(arguments)
            .arg(&path)
            .env("CAIRN_DATA_DIR", &data)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut printed = Vec::new();
        let mut output = child.stdout.take().context("it is piped")?;
        let mut byte = [0];
        while !String::from_utf8_lossy(&printed).contains("is mounted on") {
            ensure!(output.read(&mut byte)? == 1, "the mount of {name} failed");
            printed.extend(byte);
        }
        Ok(Self { child, data, path })
    }

    fn cairn(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        let status = command.args(arguments).env("CAIRN_DATA_DIR", &self.data).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "cairn {arguments:?} failed");
        Ok(())
    }

    /// A field of `/proc/<pid>/status` that is in kB.
    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).context("no number")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

fn speed(options: &Options, place: &Path, rows: &mut Vec<(String, String)>) -> Result<()> {
    let plain = place.join("plain");
    fs::create_dir(&plain)?;
    let plain = measure(options, &plain)?;
    let memory = {
        let mount = Mount::start(place, "memory", &["--memory"])?;
        measure(options, &mount.path)?
    };
    let drive = {
        let mount = Mount::start(place, "drive", &[])?;
        // Replication would compete for the same two cores: this is about the mount.
        mount.cairn(&["pause"])?;
        measure(options, &mount.path)?
    };
    for (((name, unit, plain), (_, _, memory)), (_, _, drive)) in plain.into_iter().zip(memory).zip(drive) {
        let value = format!(
            "plain {plain:9.0}  memory {memory:9.0}  drive {drive:9.0} {unit}  drive/plain {:.2}  drive/memory {:.2}",
            drive / plain,
            drive / memory
        );
        rows.push((name.to_owned(), value));
    }
    Ok(())
}

type Figure = (&'static str, &'static str, f64);

fn measure(options: &Options, directory: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let block = noise(1 << 20);
    let file = directory.join("sequential");
    let mib = options.mib as f64;
    let took = time(|| {
        let mut file = File::create(&file)?;
        for _ in 0..options.mib {
            file.write_all(&block)?;
        }
        Ok(file.sync_all()?)
    })?;
    figures.push(("sequential write + fsync", "MiB/s", mib / took));
    let took = time(|| {
        let mut buffer = vec![0; 1 << 20];
        let mut file = File::open(&file)?;
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    })?;
    figures.push(("sequential read, cached", "MiB/s", mib / took));
    fs::remove_file(&file)?;

    let count = options.files;
    let names: Vec<PathBuf> = (0..count).map(|number| directory.join(format!("d{}/f{number}", number % 16))).collect();
    for number in 0..16 {
        fs::create_dir(directory.join(format!("d{number}")))?;
    }
    let mut each = |name, work: &dyn Fn(&Path) -> Result<()>| -> Result<()> {
        let took = time(|| names.iter().try_for_each(|path| work(path)))?;
        figures.push((name, "per s", count as f64 / took));
        Ok(())
    };
    each("create", &|path| Ok(File::create_new(path).map(drop)?))?;
    each("stat", &|path| Ok(fs::metadata(path).map(drop)?))?;
    each("rename", &|path| Ok(fs::rename(path, path.with_extension("moved"))?))?;
    each("unlink", &|path| Ok(fs::remove_file(path.with_extension("moved"))?))?;
    let small = noise(4096);
    each("create + 4 KiB", &|path| Ok(File::create_new(path)?.write_all(&small)?))?;
    each("open + read 4 KiB", &|path| Ok(fs::read(path).map(drop)?))?;
    names.iter().try_for_each(fs::remove_file)?;
    Ok(figures)
}

/// What memory a large upload takes above an idle process, and how fast it is, vault and cache on one disk.
fn upload(options: &Options, place: &Path, rows: &mut Vec<(String, String)>) -> Result<()> {
    let mount = Mount::start(place, "upload", &[])?;
    let idle = mount.memory("VmRSS")?;
    let started = Instant::now();
    let mut file = File::create(mount.path.join("large"))?;
    let mut block = noise(1 << 20);
    for number in 0..options.upload_mib {
        // Nothing repeats, so everything is sent.
        block.chunks_mut(64).for_each(|part| part[0] = part[0].wrapping_add(number as u8 | 1).rotate_left(3));
        file.write_all(&block)?;
    }
    drop(file);
    mount.cairn(&["drain"])?;
    let took = started.elapsed().as_secs_f64();
    let peak = mount.memory("VmHWM")?;
    rows.push((
        format!("upload of {} MiB", options.upload_mib),
        format!("{:.0} MiB/s, memory {} MiB above idle", options.upload_mib as f64 / took, (peak - idle) >> 10),
    ));
    Ok(())
}

/// How long the mount of a large tree takes, and what memory it has taken once everything was looked at.
fn tree(options: &Options, place: &Path, rows: &mut Vec<(String, String)>) -> Result<()> {
    {
        let mount = Mount::start(place, "tree", &[])?;
        mount.cairn(&["pause"])?;
        for number in 0..options.tree {
            let directory = mount.path.join(format!("{}", number / 1000));
            if number % 1000 == 0 {
                fs::create_dir(&directory)?;
            }
            File::create_new(directory.join(number.to_string()))?;
        }
    }
    let started = Instant::now();
    let mount = Mount::start(place, "tree", &[])?;
    let ready = started.elapsed();
    let found = time(|| count(&mount.path, options.tree))?;
    rows.push((
        format!("tree of {} files", options.tree),
        format!(
            "mounted in {:.2} s, looked at in {found:.1} s, resident {} MiB",
            ready.as_secs_f64(),
            mount.memory("VmRSS")? >> 10
        ),
    ));
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

fn time(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
}
