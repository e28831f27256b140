//! Files that several programs use at once: one that grows while it is read, a log that many append to, a download in pieces.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::FallocateFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::super::world::World;
use super::{Pair, shell};
use crate::cli::workload::noise;
use crate::dice::Dice;
use crate::harness::eventually;

/// What a video encoder does: it writes on and on, and in the end it goes back and fills in the header. A player that reads behind
/// it sees nothing but what was written.
pub fn a_file_can_be_read_while_it_grows(_world: &World, pair: &Pair<'_>) {
    const HEADER: usize = 4096;
    let path = pair.paths()[0].join("video");
    let body = noise(1, 6 << 20);
    let mut writer = File::create_new(&path).expect("made");
    writer.write_all(&[0; HEADER]).expect("written");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            body.chunks(50_000).for_each(|piece| writer.write_all(piece).expect("written"));
            writer.seek(SeekFrom::Start(0)).expect("moved");
            writer.write_all(&[7; HEADER]).expect("written");
            writer.sync_all().expect("synced");
        });
        let mut player = File::open(&path).expect("opened");
        player.seek(SeekFrom::Start(HEADER as u64)).expect("moved");
        let mut seen = Vec::new();
        eventually("all of it is read", || {
            player.read_to_end(&mut seen).expect("read");
            assert!(body.starts_with(&seen), "what is read was written");
            seen.len() == body.len()
        });
    });
    pair.carry(0);
    let expected = [&[7; HEADER][..], &body].concat();
    assert!(fs::read(pair.paths()[1].join("video")).expect("read") == expected);
}

/// A process of ours, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn tail_follows_a_log_that_is_rotated(world: &World, pair: &Pair<'_>) {
    let log = pair.paths()[0].join("log");
    let shown = world.path("shown");
    let append = |text: &str| {
        let mut file = OpenOptions::new().append(true).create(true).open(&log).expect("opened");
        file.write_all(text.as_bytes()).expect("appended");
    };
    append("1\n");
    let mut command = Command::new("tail");
    command.args(["-n", "+1", "-s", "0.02", "-F"]).arg(&log).stderr(Stdio::null());
    let _tail = Running(command.stdout(File::create(&shown).expect("a file")).spawn().expect("tail is there"));
    let shows = |text: &str| {
        eventually(&format!("tail shows {text:?}"), || fs::read_to_string(&shown).expect("text") == text);
    };
    shows("1\n");
    append("2\n");
    append("3\n");
    shows("1\n2\n3\n");
    fs::rename(&log, log.with_extension("1")).expect("rotated");
    append("4\n");
    shows("1\n2\n3\n4\n");
    append("5\n");
    shows("1\n2\n3\n4\n5\n");
    pair.carry(0);
    assert_eq!(shell(pair.paths()[1], "cat log.1 log"), "1\n2\n3\n4\n5\n");
}

/// What a download manager does: all of the space at once, pieces as they come, several at a time, and the name in the end.
pub fn a_download_is_filled_out_of_order(_world: &World, pair: &Pair<'_>) {
    const PIECE: usize = 48 << 10;
    let content = noise(2, 5_000_000);
    let path = pair.paths()[0].join("image.iso");
    let partial = path.with_extension("part");
    let file = File::create_new(&partial).expect("made");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, content.len() as u64).expect("allocated");
    assert_eq!(file.metadata().expect("attributes").len(), content.len() as u64);
    let mut pieces: Vec<usize> = (0..content.len().div_ceil(PIECE)).collect();
    let mut dice = Dice::new(3);
    (1..pieces.len()).rev().for_each(|last| pieces.swap(last, dice.below(last + 1)));
    let half = pieces.len() / 2;
    for (part, pieces) in [&pieces[..half], &pieces[half..]].into_iter().enumerate() {
        std::thread::scope(|scope| {
            let (file, content) = (&file, &content);
            for connection in pieces.chunks(pieces.len().div_ceil(4)) {
                scope.spawn(move || {
                    for piece in connection {
                        let end = content.len().min((piece + 1) * PIECE);
                        let bytes = &content[piece * PIECE..end];
                        file.write_all_at(bytes, (piece * PIECE) as u64).expect("written");
                    }
                });
            }
        });
        fs::write(path.with_extension("state"), format!("{part}")).expect("written");
        // What is there of it is published while it is open.
        pair.machines[0].run(&["drain"]);
    }
    file.sync_all().expect("synced");
    drop(file);
    fs::rename(&partial, &path).expect("renamed");
    fs::remove_file(path.with_extension("state")).expect("removed");
    pair.carry(0);
    assert!(fs::read(pair.paths()[1].join("image.iso")).expect("read") == content);
}

/// Several processes append to one log, some by a descriptor they keep, some by a new one for each line: no line is lost or torn.
pub fn lines_that_processes_append_are_all_there(_world: &World, pair: &Pair<'_>) {
    const LINES: usize = 300;
    let script = r#"
        filler=$(printf '%0200d' 0)
        keeps() { for n in $(seq LINES); do echo "$1 $n $filler end"; done >> log; }
        opens() { for n in $(seq LINES); do echo "$1 $n $filler end" >> log; done; }
        processes=()
        for number in 0 1; do keeps $number & processes+=($!); done
        for number in 2 3; do opens $number & processes+=($!); done
        for process in "${processes[@]}"; do wait $process; done
    "#
    .replace("LINES", &LINES.to_string());
    let filler = "0".repeat(200);
    for turn in [0, 1] {
        shell(pair.paths()[turn], &script);
        let log = fs::read_to_string(pair.paths()[turn].join("log")).expect("text");
        let mut next = [1; 4];
        for line in log.lines().skip(turn * 4 * LINES) {
            let number = line.split(' ').next().and_then(|number| number.parse::<usize>().ok());
            let number = number.filter(|number| *number < 4).unwrap_or_else(|| panic!("a torn line: {line:?}"));
            assert_eq!(line, format!("{number} {} {filler} end", next[number]), "a line is lost or torn");
            next[number] += 1;
        }
        assert_eq!(next, [LINES + 1; 4], "lines are lost");
        pair.carry(turn);
        assert_eq!(fs::read_to_string(pair.paths()[1 - turn].join("log")).expect("text"), log);
    }
}

/// The events of a directory that were not read yet.
fn events(watch: &impl std::os::fd::AsFd) -> Vec<(String, ReadFlags)> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut events = Vec::new();
    // The descriptor does not block: when nothing is left it says so.
    while let Ok(event) = reader.next() {
        let name = event.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        events.push((name, event.events()));
    }
    events
}

/// Programs that watch a directory are told what is done on this machine. What another machine did they find when they look, as
/// with any network file system: the kernel makes events of what passes it.
pub fn watchers_are_told_of_local_changes(_world: &World, pair: &Pair<'_>) {
    let [first, second] = pair.paths();
    fs::write(first.join("old"), "here before").expect("written");
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
    inotify::add_watch(&watch, first, WatchFlags::ALL_EVENTS).expect("watched");
    let seen = |name: &str, flag: ReadFlags, events: &[(String, ReadFlags)]| {
        assert!(
            events.iter().any(|(named, flags)| named == name && flags.contains(flag)),
            "{flag:?} of {name}: {events:?}"
        );
    };
    fs::write(first.join("new"), "x").expect("written");
    let told = events(&watch);
    seen("new", ReadFlags::CREATE, &told);
    seen("new", ReadFlags::MODIFY, &told);
    seen("new", ReadFlags::CLOSE_WRITE, &told);
    fs::rename(first.join("new"), first.join("renamed")).expect("renamed");
    let told = events(&watch);
    seen("new", ReadFlags::MOVED_FROM, &told);
    seen("renamed", ReadFlags::MOVED_TO, &told);
    set_attributes(&first.join("old"));
    seen("old", ReadFlags::ATTRIB, &events(&watch));
    fs::remove_file(first.join("renamed")).expect("removed");
    seen("renamed", ReadFlags::DELETE, &events(&watch));

    pair.carry(0);
    fs::write(second.join("from-there"), "x").expect("written");
    fs::rename(second.join("old"), second.join("moved-there")).expect("renamed");
    pair.carry(1);
    let names = shell(first, "ls");
    assert!(names.contains("from-there") && names.contains("moved-there") && !names.contains("old"), "{names}");
    // The watch goes on.
    events(&watch);
    fs::write(first.join("later"), "x").expect("written");
    seen("later", ReadFlags::CREATE, &events(&watch));
}

fn set_attributes(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
}
