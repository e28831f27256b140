//! A local file whose sync failed gets a new backing file.
//!
//! What the failed sync was to make durable may be in memory only, in pages that count as written: no later sync would write
//! them. So as soon as nobody has the file open it is copied, which makes pages that are written; the copy is synced and takes
//! its place. Until that has worked every sync of the file fails.

use std::fs::File;
use std::io;

use cairn_platform_api::{InodeNo, VfsResult};

use super::inner::{Inner, failed};
use super::node::{Body, NodeRef};
use super::replication::settled_stamp;
use crate::base::os;
use crate::cache::Stamp;
use crate::tree::Namespace;

impl Inner {
    /// Renews the backing file of a file whose sync failed, if nobody can be writing to it. Blocks on the disk.
    pub(super) fn renew(&self, node: &NodeRef) -> VfsResult<()> {
        let ino = node.ino;
        if !self.write_back.is_lost(node) || !self.nodes.is_current(node) {
            return Ok(());
        }
        if !self.is_idle(node, &node.body.lock()) {
            if self.kernel.is_mappable(ino) {
                // It is looked at again when the kernel has forgotten it, or when it is closed.
                self.ask_to_forget(ino);
            }
            return Ok(());
        }
        let Some(file) = node.file.get() else { return Ok(()) };
        let Some(stamp) = settled_stamp(file)? else {
            self.later(node);
            return Ok(());
        };
        let copied = self.copy_backing(ino, file, stamp);
        let replaced = copied.map_err(Into::into).and_then(|()| self.put_copy_in_place(node, file, stamp));
        if !matches!(replaced, Ok(true)) {
            self.files.remove_copy(ino)?;
        }
        replaced.map(|_| ())
    }

    fn is_idle(&self, node: &NodeRef, body: &Body) -> bool {
        body.is_local() && body.handles == 0 && !node.has_writers() && !self.kernel.is_mappable(node.ino)
    }

    fn copy_backing(&self, ino: InodeNo, file: &File, stamp: Stamp) -> io::Result<()> {
        let copy = self.files.create_copy(ino)?;
        copy.set_len(stamp.size)?;
        let mut at = 0;
        while let Some(data) = os::seek_data(file, at)?.filter(|data| *data < stamp.size) {
            let end = os::seek_hole(file, data)?.unwrap_or(stamp.size);
            at = data;
            while at < end {
                // Not by sharing blocks: the bytes must be written.
                match os::copy_bytes(file, &copy, at, end - at)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => at += count,
                }
            }
        }
        os::set_times(&copy, None, Some(stamp.mtime))?;
        self.files.sync_file(&copy)
    }

    /// Whether it could be: nobody may have come meanwhile.
    fn put_copy_in_place(&self, node: &NodeRef, file: &File, stamp: Stamp) -> VfsResult<bool> {
        let change = self.tree.change(&[node.ino]).map_err(failed)?;
        let body = node.body.lock();
        let row = change.inode(node.ino).map_err(failed)?;
        let idle = row.is_some() && self.speaks_for(node, &body, row.as_ref()) && self.is_idle(node, &body);
        if !idle || Stamp::from(os::status(file)?) != stamp {
            return Ok(false);
        }
        self.files.put_copy_in_place(node.ino)?;
        self.nodes.detach(node);
        self.write_back.replaced(node.ino, Some(node));
        tracing::info!(ino = node.ino.0, "a file that could not be synced has a new backing file");
        Ok(true)
    }
}
