//! How programs save documents.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::super::world::World;
use super::{Pair, shell};
use crate::cli::workload::noise;
use crate::harness::is_root;

fn document(version: u64) -> Vec<u8> {
    noise(version, 30_000 + 977 * version as usize)
}

fn sync(path: &Path) {
    File::open(path).expect("opened").sync_all().expect("synced");
}

/// `:w` with `backupcopy=no`: the old file becomes the backup, a new one takes its name and its attributes.
fn save_as_vim(file: &Path, content: &[u8]) {
    let backup = file.with_extension("txt~");
    let before = fs::metadata(file).expect("there");
    fs::rename(file, &backup).expect("renamed");
    let mut new = OpenOptions::new().write(true).create_new(true).open(file).expect("made");
    new.write_all(content).expect("written");
    new.sync_all().expect("synced");
    fs::set_permissions(file, before.permissions()).expect("ours");
    drop(new);
    fs::remove_file(&backup).expect("removed");
}

/// `:w` with `backupcopy=yes`: the old content is copied, then the file is emptied and written anew. It stays the same file.
fn save_as_vim_in_place(file: &Path, content: &[u8]) {
    let backup = file.with_extension("txt~");
    fs::copy(file, &backup).expect("copied");
    sync(&backup);
    let mut same = OpenOptions::new().write(true).truncate(true).open(file).expect("opened");
    same.write_all(content).expect("written");
    same.sync_all().expect("synced");
    drop(same);
    fs::remove_file(&backup).expect("removed");
}

/// A lock beside the document while it is open, and a temporary file that takes its name.
fn save_as_libreoffice(file: &Path, content: &[u8]) {
    let lock = file.with_file_name(".~lock.document.txt#");
    let mut held = OpenOptions::new().write(true).create_new(true).open(&lock).expect("not locked");
    held.write_all(b",user,machine,01.02.2026 10:00,file:///home/user;").expect("written");
    let temporary = file.with_file_name("lu1234abc.tmp");
    let mut new = File::create_new(&temporary).expect("made");
    new.write_all(content).expect("written");
    new.set_permissions(fs::metadata(file).expect("there").permissions()).expect("ours");
    new.sync_all().expect("synced");
    fs::rename(&temporary, file).expect("replaced");
    sync(file.parent().expect("a directory"));
    fs::remove_file(&lock).expect("removed");
}

type Saver = fn(&Path, &[u8]);

pub fn documents_saved_by_editors_arrive_whole_and_alone(_world: &World, pair: &Pair<'_>) {
    let savers: [(&str, Saver); 3] =
        [("vim", save_as_vim), ("in-place", save_as_vim_in_place), ("libreoffice", save_as_libreoffice)];
    for (turn, versions) in [(0, 1..6), (1, 6..11)] {
        let here = pair.paths()[turn];
        for (name, save) in savers {
            let file = here.join(name).join("document.txt");
            if turn == 0 {
                fs::create_dir(here.join(name)).expect("made");
                fs::write(&file, document(0)).expect("written");
                fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("ours");
                if is_root() {
                    chown(&file, Some(65534), Some(65534)).expect("we are root");
                }
            }
            for version in versions.clone() {
                save(&file, &document(version));
                assert!(fs::read(&file).expect("read") == document(version), "{name} reads what it saved");
            }
        }
        pair.carry(turn);
        for (name, _) in savers {
            for path in pair.paths() {
                let directory = path.join(name);
                let names: Vec<_> = fs::read_dir(&directory)
                    .expect("listed")
                    .map(|entry| entry.expect("an entry").file_name())
                    .collect();
                assert_eq!(names, ["document.txt"], "{name} leaves nothing behind");
                assert!(fs::read(directory.join("document.txt")).expect("read") == document(versions.end - 1));
                let mode = fs::metadata(directory.join("document.txt")).expect("there").permissions().mode();
                assert_eq!(mode & 0o777, 0o640);
            }
        }
    }
}

pub fn vim_saves_in_both_ways(_world: &World, pair: &Pair<'_>) {
    let [first, second] = pair.paths();
    let vim = |path, copy: &str, line: &str| {
        let script = format!(
            "vim -u NONE -i NONE -n -es -c 'set backup writebackup fsync backupskip= backupcopy={copy}' -c 'normal Go{line}' -c 'wq' notes.txt"
        );
        shell(path, &script);
    };
    fs::write(first.join("notes.txt"), "one\n").expect("written");
    vim(first, "no", "two");
    pair.carry(0);
    vim(second, "yes", "three");
    pair.carry(1);
    vim(first, "auto", "four");
    pair.carry(0);
    for path in pair.paths() {
        assert_eq!(fs::read_to_string(path.join("notes.txt")).expect("text"), "one\ntwo\nthree\nfour\n");
        assert_eq!(fs::read_to_string(path.join("notes.txt~")).expect("text"), "one\ntwo\nthree\n");
    }
}
