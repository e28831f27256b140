//! The process dies at every step of a push and a pull, and of writing and loading a checkpoint. The victim is this test program, started again for one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cairnfs::provider::Provider;
use cairnfs::provider::fs::FsProvider;
use cairnfs::replicate::{CheckpointPolicy, ReplicateSettings, STEPS};
use cairnfs::vault::{InitOptions, Vault};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::device::{Device, Listing, noise};
use super::world::{drain, open_device_with, runtime, secret, settings};

const DIR: &str = "CAIRN_TEST_CRASH_DIR";
/// Less than a pack: with two on the way at once, which of them is recorded first would be chance.
const CONTENT: usize = 3 << 20;

struct Stage {
    runtime: Runtime,
    remote: Arc<dyn Provider>,
    vault: Arc<Vault>,
    dir: PathBuf,
}

impl Stage {
    fn open(dir: &Path) -> Self {
        let runtime = runtime();
        std::fs::create_dir_all(dir.join("remote")).expect("a folder for the remote");
        let remote: Arc<dyn Provider> = Arc::new(FsProvider::new(&dir.join("remote")));
        let vault = runtime.block_on(async {
            match Vault::open(&*remote, &secret()).await {
                Ok(vault) => vault,
                Err(_) => Vault::init(&*remote, InitOptions::new(vec![secret()])).await.expect("a vault is made"),
            }
        });
        Self { runtime, remote, vault: Arc::new(vault), dir: dir.to_owned() }
    }

    fn device(&self, name: &str) -> Device {
        let checkpoint = CheckpointPolicy { segments: 1, bytes: u64::MAX };
        let settings = ReplicateSettings { checkpoint, ..settings() };
        open_device_with(&self.runtime, &self.dir.join(name), name, &self.vault, Arc::clone(&self.remote), settings)
    }

    fn pull(&self, device: &Device) {
        self.runtime.block_on(device.engine.pull_round()).expect("the device pulls");
    }

    fn pack_bytes(&self) -> u64 {
        let packs = self.runtime.block_on(self.remote.list("packs/", None)).expect("the remote lists");
        packs.iter().map(|entry| entry.size).sum()
    }
}

fn write_everything(device: &Device) {
    device.mkdir("d");
    device.write("d/large", &noise(1, CONTENT));
    device.write("small", b"small");
    device.rename("small", "d/renamed");
}

fn expected() -> Listing {
    Listing::from([
        ("d".to_owned(), None),
        ("d/large".to_owned(), Some(noise(1, CONTENT))),
        ("d/renamed".to_owned(), Some(b"small".to_vec())),
    ])
}

/// Not a test by itself: what the victim does until it dies.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let stage = Stage::open(Path::new(&dir));
    let device = stage.device("a");
    write_everything(&device);
    device.drive.flush().expect("everything is durable");
    drain(&stage.runtime, &device).expect("the victim drains");
    let other = stage.device("c");
    other.write("from c", b"other");
    drain(&stage.runtime, &other).expect("the other device drains");
    stage.pull(&device);
    stage.runtime.block_on(device.engine.checkpoint_round()).expect("the victim writes a checkpoint");
    stage.pull(&stage.device("d"));
}

#[test]
fn process_that_dies_at_any_step_loses_nothing_and_sends_nothing_twice() {
    for step in STEPS {
        let dir = TempDir::new().expect("a temporary directory");
        let victim = Command::new(std::env::current_exe().expect("the test program has a path"))
            .args(["--exact", "replicate::crash::victim", "--test-threads=1"])
            .env(DIR, dir.path())
            .env("CAIRN_ABORT_AT", step)
            .output()
            .expect("the victim starts");
        assert!(!victim.status.success(), "{step}: the victim was to die, and did not");
        let stage = Stage::open(dir.path());
        let device = stage.device("a");
        stage.pull(&device);
        let mut seen = device.everything();
        seen.remove("from c");
        assert!(seen == expected(), "{step}: {:?}", seen.keys());
        drain(&stage.runtime, &device).unwrap_or_else(|error| panic!("{step}: {error}"));
        let other = stage.device("b");
        stage.pull(&other);
        assert!(other.everything() == device.everything(), "{step}: the devices differ");
        let joined = stage.device("d");
        stage.pull(&joined);
        assert!(joined.everything() == device.everything(), "{step}: the device that joined differs");
        let once = ["push.before_pack", "push.after_pack"].contains(step);
        let bytes = stage.pack_bytes();
        assert!(once || bytes < (CONTENT as u64) * 5 / 4, "{step}: {bytes} bytes in packs");
    }
}
