//! Contents that a fold replaced or removed while somebody could still write to them.
//!
//! Such a content is kept under a number of its own, without a name, until nobody can write to it any more. If nobody did,
//! it goes; otherwise it becomes a file beside the one that it was of, named as conflict copies are. The rows are this
//! machine's alone: no fold undoes them, and other devices learn of the file that is made at last.

use std::ops::ControlFlow;

use bytes::Bytes;
use cairn_platform_api::InodeNo;

use super::keys::{self, family};
use super::namespace::{Namespace, decoded};
use super::rows::{self, Content, ContentState, InodeRow, Place, Stamp};
use super::{Tree, TreeError, names};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::store::Rows;

const VERSION: u8 = 1;

/// What a fold asks about the files of inodes. It holds the gate, so nothing here may take it.
pub trait Contents {
    /// Whether the local content of an inode still is this one, which it began as.
    fn is_unmodified(&mut self, ino: InodeNo, content: &Content) -> bool;

    /// This content is not the inode's any more. Where somebody may still write to its file, the stamp that the file has
    /// as long as nobody did.
    fn replaced(&mut self, ino: InodeNo, content: &Content) -> Option<Stamp>;

    /// The file of a replaced content is to be kept under this number once the fold is durable.
    fn set_aside(&mut self, ino: InodeNo, number: InodeNo, stamp: Stamp);
}

/// There are no files.
pub(super) struct NoContents;

impl Contents for NoContents {
    fn is_unmodified(&mut self, _ino: InodeNo, _content: &Content) -> bool {
        false
    }

    fn replaced(&mut self, _ino: InodeNo, _content: &Content) -> Option<Stamp> {
        None
    }

    fn set_aside(&mut self, _ino: InodeNo, _number: InodeNo, _stamp: Stamp) {}
}

/// A content that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsideRow {
    /// The inode whose content it was.
    pub of: InodeNo,
    /// The inode as it was.
    pub row: InodeRow,
    /// One of its names.
    pub place: Option<Place>,
    /// What its file looked like. What is not a matter of its content may change: the file was moved.
    pub stamp: Stamp,
}

impl AsideRow {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(192);
        writer.u8(VERSION);
        writer.u64(self.of.0);
        self.row.write(&mut writer);
        rows::write_option(&mut writer, self.place.as_ref(), |writer, place| place.write(writer));
        writer.u64(self.stamp.size);
        writer.i64(self.stamp.mtime.as_nanos());
        writer.i64(self.stamp.ctime.as_nanos());
        writer.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "an aside row")?;
        let of = InodeNo(reader.u64("an inode number")?);
        let row = InodeRow::read(&mut reader)?;
        let place = rows::read_option(&mut reader, Place::read)?;
        let stamp = rows::read_stamp(&mut reader)?;
        reader.finish()?;
        Ok(Self { of, row, place, stamp })
    }
}

impl Tree {
    /// All contents that are set aside, by their numbers.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read; so for all methods.
    pub fn asides(&self) -> Result<Vec<(InodeNo, AsideRow)>, TreeError> {
        let mut asides = Vec::new();
        let mut failure = None;
        self.store.scan_family(family::REPLACED, &mut |key, value| {
            let number = keys::number(key).ok_or(DecodeError::Invalid("a key"));
            match number.and_then(|number| Ok((InodeNo(number), AsideRow::decode(value)?))) {
                Ok(aside) => {
                    asides.push(aside);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(TreeError::corrupt(key, error));
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(asides), Err)
    }

    /// Forgets a content that was set aside.
    ///
    /// # Errors
    /// As [`Tree::asides`].
    pub fn forget_aside(&self, number: InodeNo) -> Result<(), TreeError> {
        let mut change = self.change(&[number])?;
        change.rows().delete(&keys::aside(number));
        change.commit();
        Ok(())
    }

    /// Makes a file with local content of what was set aside, beside the inode that it was of; answers where. `None` where
    /// nothing is set aside under that number.
    ///
    /// # Errors
    /// As [`Tree::asides`].
    pub fn adopt_aside(&self, number: InodeNo) -> Result<Option<Place>, TreeError> {
        let key = keys::aside(number);
        let time = self.clock.tick();
        loop {
            let Some(value) = self.store.get(&key)? else { return Ok(None) };
            let aside = decoded(&key, AsideRow::decode(&value))?;
            let place = self.place_beside(&aside)?;
            let mut change = self.change(&[place.parent, number])?;
            let Some(mut directory) = change.inode(place.parent)?.filter(InodeRow::is_directory) else { continue };
            let mut attempt = 0;
            let name = loop {
                let name = names::conflict_name(&place.name, &self.device.name, time, attempt);
                if change.lookup(place.parent, &name)?.is_none() {
                    break name;
                }
                attempt += 1;
            };
            let row = InodeRow { nlink: 0, content: ContentState::Local { base: None }, version: None, ..aside.row };
            change.create(number, place.parent, &name, &row)?;
            let now = cairn_platform_api::Timestamp::now();
            directory = change.inode(place.parent)?.unwrap_or(directory);
            (directory.mtime, directory.ctime) = (now, now);
            change.put_inode(place.parent, &directory)?;
            change.rows().delete(&key);
            change.commit();
            return Ok(Some(Place { parent: place.parent, name }));
        }
    }

    /// Where the inode is now or was last; in the root where that directory is gone.
    fn place_beside(&self, aside: &AsideRow) -> Result<Place, TreeError> {
        let now = self.links(aside.of)?.into_iter().next().map(|link| link.place);
        for place in now.into_iter().chain(aside.place.clone()) {
            if self.inode(place.parent)?.is_some_and(|row| row.is_directory()) {
                return Ok(place);
            }
        }
        let name = match &aside.place {
            Some(place) => place.name.clone(),
            None => cairn_platform_api::VfsName::new(format!("{:x}", aside.of.0).as_bytes())
                .expect("a number in digits is a name"),
        };
        Ok(Place { parent: InodeNo::ROOT, name })
    }
}

#[cfg(test)]
mod tests {
    use cairn_platform_api::{FileKind, Timestamp, VfsName};

    use super::*;

    #[test]
    fn rows_round_trip_and_damaged_ones_are_refused() {
        let row = InodeRow::new(FileKind::Regular, 0o640, Timestamp::from_nanos(5));
        let stamp = Stamp { size: 9, mtime: Timestamp::from_nanos(-4), ctime: Timestamp::from_nanos(1 << 60) };
        let name = VfsName::new(b"name").unwrap();
        for place in [None, Some(Place { parent: InodeNo(3), name })] {
            let aside = AsideRow { of: InodeNo(77), row: row.clone(), place, stamp };
            let bytes = aside.encode();
            assert_eq!(AsideRow::decode(&bytes).as_ref(), Ok(&aside));
            for cut in 0..bytes.len() {
                assert!(AsideRow::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
