//! What is measured. A worker process does one group of these in one directory and prints what each took, so that whoever it runs as
//! is who the file system sees.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, fadvise};

/// Sizes of the work; all of one run have the same.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Length of the large file in MiB.
    pub mib: usize,
    /// Files for each measurement of names.
    pub files: usize,
    /// Files in the archive and the repository.
    pub tree: usize,
}

/// Where a worker works.
pub struct Place<'a> {
    /// A directory of the file system that is measured.
    pub directory: &'a Path,
    /// Where it keeps contents; the same directory, for a plain folder.
    pub backing: &'a Path,
    /// Where [`prepare`] put what is unpacked and cloned.
    pub sources: &'a Path,
}

/// Groups of work, and whether names and attributes are dropped from the kernel's caches before it.
pub const GROUPS: [(&str, bool); 5] =
    [("data", false), ("names", false), ("cold stat", true), ("cold list", true), ("programs", false)];

/// What comes before all of [`GROUPS`]: makes the directory that is looked at when it is cold.
pub const POPULATE: &str = "populate";

const BLOCK: usize = 4096;
/// Entries of the directory that is looked at.
const ENTRIES: usize = 10_000;
/// As many rounds of the slow kinds of work.
const SYNCS: usize = 200;
const TRANSACTIONS: usize = 300;
const RANDOM_BLOCKS: usize = 16_384;

/// Seconds that each kind of work took, in the order it was done.
pub type Figures = Vec<(String, f64)>;

/// Does one group.
///
/// # Errors
/// What failed.
pub fn work(group: &str, place: &Place<'_>, sizes: &Sizes) -> Result<Figures> {
    let mut figures = Figures::new();
    match group {
        POPULATE => populate(place.directory)?,
        "data" => data(place, sizes, &mut figures)?,
        "names" => names(place, sizes, &mut figures)?,
        "cold stat" => cold_stat(place, &mut figures)?,
        "cold list" => cold_list(place, &mut figures)?,
        "programs" => programs(place, &mut figures)?,
        _ => anyhow::bail!("unknown group {group:?}"),
    }
    Ok(figures)
}

/// Makes what is unpacked, cloned and looked at.
///
/// # Errors
/// What failed.
pub fn prepare(sources: &Path, sizes: &Sizes) -> Result<()> {
    let tree = sources.join("tree");
    for number in 0..sizes.tree {
        let directory = tree.join(format!("{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        fs::write(directory.join(format!("{number}.txt")), format!("file {number}\n").repeat(40))?;
    }
    let git = |arguments: &[&str]| run(Command::new("git").arg("-C").arg(&tree).args(arguments));
    git(&["init", "--quiet"])?;
    git(&["add", "."])?;
    git(&["-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "--quiet", "-m", "all"])?;
    // A bundle may be cloned by whoever can read it; a repository of somebody else may not.
    git(&["bundle", "create", "--quiet", "../tree.bundle", "HEAD"])?;
    run(Command::new("tar").arg("-C").arg(&tree).args(["--exclude=.git", "-cf"]).arg(sources.join("tree.tar")).arg("."))
}

fn populate(directory: &Path) -> Result<()> {
    let many = directory.join("many");
    fs::create_dir(&many)?;
    (0..ENTRIES).try_for_each(|number| Ok(File::create_new(many.join(format!("entry-{number}"))).map(drop)?))
}

fn data(place: &Place<'_>, sizes: &Sizes, figures: &mut Figures) -> Result<()> {
    let path = place.directory.join("large");
    let mut block = noise(1 << 20);
    let mut time = |name: &str, work: &mut dyn FnMut() -> Result<()>| timed(figures, name, work);
    time("sequential write + fsync", &mut || {
        let file = File::create(&path)?;
        (0..sizes.mib).try_for_each(|number| file.write_all_at(&block, (number as u64) << 20))?;
        Ok(file.sync_all()?)
    })?;
    let mut read = || {
        let mut file = File::open(&path)?;
        while file.read(&mut block)? > 0 {}
        Ok(())
    };
    read()?;
    time("sequential read, warm", &mut read)?;
    drop_pages(&path)?;
    drop_pages(place.backing)?;
    time("sequential read, cold", &mut read)?;

    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let blocks = (sizes.mib as u64) << 8;
    let offsets = || random().map(|number| number % blocks * BLOCK as u64).take(RANDOM_BLOCKS);
    let mut small = noise(BLOCK);
    time("random 4 KiB read, warm", &mut || {
        Ok(offsets().try_for_each(|offset| file.read_exact_at(&mut small, offset))?)
    })?;
    time("random 4 KiB write", &mut || Ok(offsets().try_for_each(|offset| file.write_all_at(&small, offset))?))?;
    file.sync_all()?;
    time("4 KiB write + fsync", &mut || {
        offsets().take(SYNCS).try_for_each(|offset| {
            file.write_all_at(&small, offset)?;
            Ok(file.sync_data()?)
        })
    })?;
    drop(file);
    fs::remove_file(&path)?;

    let database = place.directory.join("database");
    let sqlite = |statements: &str| -> Result<()> {
        let script = place.directory.join("script");
        fs::write(&script, statements)?;
        run(Command::new("sqlite3").arg(&database).stdin(File::open(&script)?).stdout(Stdio::null()))?;
        Ok(fs::remove_file(script)?)
    };
    sqlite("pragma journal_mode = wal; create table t(id integer primary key, text);")?;
    let insert = "insert into t(text) values (hex(randomblob(100)));\n".repeat(TRANSACTIONS);
    time("SQLite WAL transactions", &mut || sqlite(&format!("pragma synchronous = full;\n{insert}")))?;
    for entry in fs::read_dir(place.directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("database")) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn names(place: &Place<'_>, sizes: &Sizes, figures: &mut Figures) -> Result<()> {
    let small = noise(BLOCK);
    for threads in [1, 4] {
        let top = place.directory.join(format!("names-{threads}"));
        let each = sizes.files / threads;
        let of_thread = |thread: usize| top.join(thread.to_string());
        let paths: Vec<Vec<PathBuf>> = (0..threads)
            .map(|thread| {
                (0..each).map(|number| of_thread(thread).join(format!("{}/f{number}", number % 16))).collect()
            })
            .collect();
        for thread in 0..threads {
            (0..16).try_for_each(|number| fs::create_dir_all(of_thread(thread).join(number.to_string())))?;
        }
        let label = |name: &str| format!("{name}, {threads} thread{}", if threads == 1 { "" } else { "s" });
        let mut time = |name: &str, act: &(dyn Fn(&Path) -> Result<()> + Sync)| {
            timed(figures, &label(name), &mut || {
                in_parallel(threads, |thread| paths[thread].iter().try_for_each(|path| act(path)))
            })
        };
        time("create", &|path| Ok(File::create_new(path).map(drop)?))?;
        time("rename", &|path| Ok(fs::rename(path, path.with_extension("moved"))?))?;
        time("unlink", &|path| Ok(fs::remove_file(path.with_extension("moved"))?))?;
        time("create + 4 KiB", &|path| Ok(File::create_new(path)?.write_all_at(&small, 0)?))?;
        timed(figures, &label("rm -r"), &mut || {
            in_parallel(threads, |thread| Ok(fs::remove_dir_all(of_thread(thread))?))
        })?;
        fs::remove_dir(top)?;
    }
    Ok(())
}

fn cold_stat(place: &Place<'_>, figures: &mut Figures) -> Result<()> {
    let many = place.directory.join("many");
    timed(figures, "stat of 10,000 files, cold", &mut || {
        (0..ENTRIES).try_for_each(|number| Ok(fs::metadata(many.join(format!("entry-{number}"))).map(drop)?))
    })
}

fn cold_list(place: &Place<'_>, figures: &mut Figures) -> Result<()> {
    let many = place.directory.join("many");
    timed(figures, "ls -l of 10,000 files, cold", &mut || {
        run(Command::new("ls").arg("-l").arg(&many).stdout(Stdio::null()))
    })
}

fn programs(place: &Place<'_>, figures: &mut Figures) -> Result<()> {
    let (unpacked, clone) = (place.directory.join("unpacked"), place.directory.join("clone"));
    fs::create_dir(&unpacked)?;
    let archive = place.sources.join("tree.tar");
    let git = || {
        let mut command = Command::new("git");
        command.stdout(Stdio::null());
        command
    };
    timed(figures, "untar", &mut || run(Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(&archive)))?;
    timed(figures, "git clone", &mut || {
        run(git()
            .args(["-c", "advice.detachedHead=false", "clone", "--quiet"])
            .arg(place.sources.join("tree.bundle"))
            .arg(&clone))
    })?;
    timed(figures, "git status", &mut || run(git().arg("-C").arg(&clone).args(["status", "--short"])))?;
    fs::remove_dir_all(unpacked)?;
    Ok(fs::remove_dir_all(clone)?)
}

fn timed(figures: &mut Figures, name: &str, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    work().with_context(|| name.to_owned())?;
    figures.push((name.to_owned(), started.elapsed().as_secs_f64()));
    Ok(())
}

fn in_parallel(threads: usize, act: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let act = &act;
                    move || act(thread)
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}

/// Lets the kernel forget the pages of a file, or of all files of a directory.
fn drop_pages(path: &Path) -> Result<()> {
    if path.is_dir() {
        return fs::read_dir(path)?.try_for_each(|entry| drop_pages(&entry?.path()));
    }
    if path.is_file() {
        fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    random().flat_map(u64::to_le_bytes).take(length).collect()
}

/// Numbers without an order (Marsaglia's xorshift), the same each time.
fn random() -> impl Iterator<Item = u64> {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}
