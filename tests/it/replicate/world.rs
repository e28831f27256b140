//! A vault and the devices that are attached to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cairn_platform_api::InodeNo;
use cairnfs::base::DeviceId;
use cairnfs::chunk::ChunkerParams;
use cairnfs::crypto::Secret;
use cairnfs::drive::{Drive, DriveError, DriveSettings};
use cairnfs::provider::memory::MemoryProvider;
use cairnfs::provider::{ObjectEntry, ObjectPath, Provider, PutMode};
use cairnfs::replicate::{Engine, Fetcher, ReplicateError, ReplicateSettings, Urgency};
use cairnfs::tree::DeviceIdentity;
use cairnfs::vault::{InitOptions, Vault};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::device::Device;
use crate::patience::{NEVER, eventually_some};

pub struct World {
    pub runtime: Runtime,
    pub remote: Arc<dyn Provider>,
    pub vault: Arc<Vault>,
    dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::over(MemoryProvider::new())
    }

    pub fn over(remote: Arc<dyn Provider>) -> Self {
        Self::with(remote, InitOptions::new(vec![secret()]))
    }

    /// With chunks so small that a file of some MiB has as many as one of some hundred GiB otherwise.
    pub fn of_tiny_chunks() -> Self {
        let chunker = ChunkerParams { minimum: 64, average: 256, maximum: 1024 };
        Self::with(MemoryProvider::new(), InitOptions { chunker, ..InitOptions::new(vec![secret()]) })
    }

    fn with(remote: Arc<dyn Provider>, options: InitOptions) -> Self {
        let runtime = runtime();
        let vault = runtime.block_on(Vault::init(&*remote, options)).expect("a vault is made");
        Self { runtime, remote, vault: Arc::new(vault), dir: TempDir::new().expect("a temporary directory") }
    }

    pub fn device(&self, name: &str) -> Device {
        self.device_over(name, Arc::clone(&self.remote))
    }

    /// A device that sees the remote through `provider`.
    pub fn device_over(&self, name: &str, provider: Arc<dyn Provider>) -> Device {
        open_device(&self.runtime, &self.dir.path().join(name), name, &self.vault, provider)
    }

    /// A device with other settings than the usual ones.
    pub fn device_of(
        &self,
        name: &str,
        provider: Arc<dyn Provider>,
        change: impl FnOnce(&mut ReplicateSettings),
    ) -> Device {
        let mut settings = settings();
        change(&mut settings);
        open_device_with(&self.runtime, &self.dir.path().join(name), name, &self.vault, provider, settings)
    }

    /// A device that reads at most so much of a file in a round.
    pub fn device_of_slices(&self, name: &str, slice: u64) -> Device {
        self.device_of(name, Arc::clone(&self.remote), |settings| settings.slice = slice)
    }

    /// Closes the device and opens it again.
    pub fn restart(&self, device: Device) -> Device {
        self.restart_over(device, Arc::clone(&self.remote))
    }

    /// Closes the device and opens it again over `provider`.
    pub fn restart_over(&self, device: Device, provider: Arc<dyn Provider>) -> Device {
        let name = device.name.clone();
        device.close();
        self.device_over(&name, provider)
    }

    /// Where a device keeps the content of a file.
    pub fn backing_file(&self, device: &str, ino: InodeNo) -> PathBuf {
        self.dir.path().join(device).join("content").join(format!("{:02x}", ino.0 & 0xff)).join(format!("{:x}", ino.0))
    }

    /// Lets go of the device without closing it, and opens it again: a stop that it sees as unclean.
    pub fn crash(&self, device: Device) -> Device {
        let name = device.name.clone();
        drop(device);
        self.device(&name)
    }

    pub fn drain(&self, device: &Device) {
        drain(&self.runtime, device).expect("the device drains");
    }

    pub fn pull(&self, device: &Device) {
        self.runtime.block_on(device.engine.pull_round()).expect("the device pulls");
    }

    /// Each pulls and drains in turn, then all pull.
    pub fn exchange(&self, devices: &[&Device]) {
        for device in devices {
            self.pull(device);
            self.drain(device);
        }
        for device in devices {
            self.pull(device);
        }
    }

    fn list(&self, prefix: &str) -> Vec<ObjectEntry> {
        self.runtime.block_on(self.remote.list(prefix, None)).expect("the remote lists")
    }

    /// The number of objects below a prefix.
    pub fn objects(&self, prefix: &str) -> usize {
        self.list(prefix).len()
    }

    pub fn remote_bytes(&self) -> u64 {
        self.list("").iter().map(|entry| entry.size).sum()
    }

    pub fn largest(&self, prefix: &str) -> ObjectPath {
        self.list(prefix).into_iter().max_by_key(|entry| entry.size).expect("there is an object").path
    }

    pub fn last(&self, prefix: &str) -> ObjectPath {
        self.list(prefix).pop().expect("there is an object").path
    }

    /// Changes the last object below a prefix.
    pub fn alter_last(&self, prefix: &str, alter: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        self.alter(&self.last(prefix), alter);
    }

    /// Changes an object, or takes it away.
    pub fn alter(&self, path: &ObjectPath, alter: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        let body = self.runtime.block_on(self.remote.get(path, None)).expect("it can be read").to_vec();
        self.runtime
            .block_on(async {
                match alter(body) {
                    Some(body) => self.remote.put(path, Bytes::from(body), PutMode::Overwrite).await,
                    None => self.remote.delete(path).await,
                }
            })
            .expect("it can be changed");
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
}

pub fn secret() -> Secret {
    Secret::KeyFile([7; 32].into())
}

pub fn open_device(
    runtime: &Runtime,
    dir: &Path,
    name: &str,
    vault: &Arc<Vault>,
    provider: Arc<dyn Provider>,
) -> Device {
    open_device_with(runtime, dir, name, vault, provider, settings())
}

pub fn settings() -> ReplicateSettings {
    ReplicateSettings { read_deadline: NEVER, ..ReplicateSettings::default() }
}

pub fn open_device_with(
    runtime: &Runtime,
    dir: &Path,
    name: &str,
    vault: &Arc<Vault>,
    provider: Arc<dyn Provider>,
    replicate: ReplicateSettings,
) -> Device {
    let fetcher = Fetcher::new(Arc::clone(vault), provider, &replicate, runtime.handle().clone());
    let identity = DeviceIdentity { id: device_id(name), name: name.to_owned() };
    let settings = DriveSettings {
        disk_reserve: 0,
        read_deadline: replicate.read_deadline,
        ..DriveSettings::new(identity, runtime.handle().clone())
    };
    let drive = eventually_some("nobody has the drive any more", || {
        match Drive::open(dir, settings.clone(), Arc::new(fetcher.clone())) {
            Ok(drive) => Some(drive),
            // A task of the device that was closed just now still has its hand on the database.
            Err(DriveError::InUse(_)) => None,
            Err(error) => panic!("cannot open the drive of {name}: {error}"),
        }
    });
    let engine = Engine::new(Arc::clone(&drive), &fetcher, replicate);
    Device { name: name.to_owned(), drive, engine, fetcher }
}

/// Pushes until nothing is left.
pub fn drain(runtime: &Runtime, device: &Device) -> Result<(), ReplicateError> {
    let is_drained = || {
        runtime.block_on(device.engine.push_round(Urgency::Drain))?;
        Ok(device.engine.status()?.is_drained())
    };
    eventually_some("the device drains", || match is_drained() {
        Ok(drained) => drained.then_some(Ok(())),
        Err(error) => Some(Err(error)),
    })
}

fn device_id(name: &str) -> DeviceId {
    let hash = blake3::hash(name.as_bytes());
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&hash.as_bytes()[..4]);
    DeviceId::from_random(u32::from_le_bytes(bytes))
}
