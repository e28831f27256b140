//! The end of an application: inodes without a name, and conflict copies.

use cairn_platform_api::{InodeNo, VfsName};

use super::{Apply, Copy, Lost, Why};
use crate::base::ChangeId;
use crate::chunk::ContentId;
use crate::store::Rows;
use crate::tree::keys::{self, family};
use crate::tree::namespace::Namespace;
use crate::tree::rows::{Content, ContentState, GraveRow, InodeRow, Link, Place};
use crate::tree::{DentryId, TreeError, names};

impl Apply<'_, '_, '_> {
    /// Decides about all inodes that have no name: files first, since a file that stays keeps its directory.
    pub(super) fn settle(&mut self) -> Result<(), TreeError> {
        let nameless: Vec<_> = self.lost.keys().chain(&self.fresh).copied().collect();
        for &ino in &nameless {
            if let Some(row) = self.nameless(ino)? {
                if !row.is_directory() {
                    self.settle_file(ino, &row)?;
                }
            }
        }
        for &ino in &nameless {
            if self.nameless(ino)?.is_some_and(|row| row.is_directory()) && self.keeps_directory(ino)? {
                self.relink(ino)?;
            }
        }
        // Keeping a file may have brought back directories that lost another name on the way.
        let nameless: Vec<_> = self.lost.keys().chain(&self.fresh).copied().collect();
        for ino in nameless {
            if let Some(row) = self.nameless(ino)? {
                self.bury(ino, row)?;
            }
        }
        Ok(())
    }

    /// The row of an inode that exists and has no name.
    fn nameless(&self, ino: InodeNo) -> Result<Option<InodeRow>, TreeError> {
        let Some(row) = self.state.rows.inode(ino)? else { return Ok(None) };
        let has_name = match row.is_directory() {
            true => ino == InodeNo::ROOT || self.state.rows.any(&keys::numbered(family::LINK, ino.0))?,
            false => row.nlink > 0,
        };
        Ok((!has_name).then_some(row))
    }

    fn keeps_directory(&self, ino: InodeNo) -> Result<bool, TreeError> {
        let mut lost = self.lost.get(&ino).into_iter().flatten();
        let is_removed = lost.clone().any(|lost| matches!(lost.why, Why::Removed { .. }));
        let had_name = lost.any(|lost| matches!(lost.why, Why::Moved | Why::Buried));
        Ok(had_name && !is_removed || !self.state.rows.is_empty(ino)?)
    }

    fn settle_file(&mut self, ino: InodeNo, row: &InodeRow) -> Result<(), TreeError> {
        let lost = self.lost.remove(&ino).unwrap_or_default();
        let is_local = matches!(row.content, ContentState::Local { .. });
        let content = row.content.published().map(|content| content.id);
        let goes = lost.iter().any(|lost| match lost.why {
            Why::Removed { seen } => seen == content,
            Why::Collapsed => true,
            Why::Moved | Why::Buried | Why::Unplaced => false,
        });
        let by = row.version.map_or(self.set.id, |version| version.change);
        let mut gone = Vec::new();
        for lost in lost {
            let stays = is_local || !goes && matches!(lost.why, Why::Removed { .. } | Why::Moved | Why::Buried);
            if stays && self.state.rows.place(ino, lost.link.dentry)?.is_none() {
                let parent = self.directory(lost.link.place.parent)?.unwrap_or(InodeNo::ROOT);
                self.attach_file(lost.link.dentry, ino, Place { parent, ..lost.link.place }, by)?;
                self.relink(parent)?;
            } else {
                gone.push(lost);
            }
        }
        self.lost.entry(ino).or_default().extend(gone);
        Ok(())
    }

    /// Gives a directory without a name the one it lost, and so for the directories above it, which are brought back where
    /// they were removed: all of them are collected on the way up, and get their names on the way down.
    pub(super) fn relink(&mut self, ino: InodeNo) -> Result<(), TreeError> {
        let mut nameless = Vec::new();
        let mut at = ino;
        // One that is on its way to a new place gets that, and what is below it waits.
        while !self.moving.contains(&at) && self.nameless(at)?.is_some() {
            let lost = self.lost.remove(&at).unwrap_or_default();
            let link = lost.first().map_or_else(|| nowhere(at), |lost| lost.link.clone());
            let parent = self.revived_directory(link.place.parent)?.unwrap_or(InodeNo::ROOT);
            nameless.push((at, link));
            at = parent;
        }
        if nameless.is_empty() {
            return Ok(());
        }
        let top = self.top(at)?;
        let mut parent = if top == InodeNo::ROOT || self.moving.contains(&top) { at } else { InodeNo::ROOT };
        for (ino, link) in nameless.into_iter().rev() {
            // Graves that lie in each other: the one that was met first has its name by now.
            if self.nameless(ino)?.is_some() {
                self.attach_directory(link.dentry, ino, Place { parent, name: link.place.name })?;
            }
            parent = self.resolve(ino)?;
        }
        Ok(())
    }

    /// Removes an inode without names; what it was is kept.
    fn bury(&mut self, ino: InodeNo, row: InodeRow) -> Result<(), TreeError> {
        let lost = self.lost.remove(&ino).unwrap_or_default();
        let mut links: Vec<Link> = Vec::new();
        for Lost { link, .. } in lost {
            if links.iter().all(|known| known.dentry != link.dentry) {
                links.push(link);
            }
        }
        self.state.set_grave(ino, Some(&GraveRow { row, links }))?;
        self.state.remove_inode(ino)
    }

    /// Places the contents that lost their file beside it; copies that the author has replaced by now go.
    pub(super) fn place_copies(&mut self) -> Result<(), TreeError> {
        for (of, content) in std::mem::take(&mut self.stale) {
            self.remove_stale_copy(of, content)?;
        }
        for copy in std::mem::take(&mut self.copies) {
            self.place_copy(&copy)?;
        }
        Ok(())
    }

    /// The author of this change set replaced `content`, which lost to somebody else's meanwhile: the copy that keeps it
    /// is of no use where nobody touched it.
    fn remove_stale_copy(&mut self, of: InodeNo, content: ContentId) -> Result<(), TreeError> {
        for attempt in 0.. {
            let ino = InodeNo(names::copy_number(of, self.set.id.device, attempt));
            let Some(row) = self.state.rows.inode(ino)? else {
                if self.is_used(ino)? {
                    continue;
                }
                return Ok(());
            };
            let is_untouched = matches!(row.content, ContentState::Published(there) if there.id == content);
            if let (true, [link]) = (is_untouched, &self.state.rows.links(ino)?[..]) {
                self.state.detach(link.dentry, ino, &link.place)?;
                self.lose(ino, link.clone(), Why::Removed { seen: Some(content) });
                let row = InodeRow { nlink: 0, ..row };
                return self.bury(ino, row);
            }
        }
        Ok(())
    }

    /// Whether a number belongs to an inode that is not there any more.
    fn is_used(&self, ino: InodeNo) -> Result<bool, TreeError> {
        Ok(self.state.grave(ino)?.is_some() || self.alias(ino)?.is_some())
    }

    fn place_copy(&mut self, copy: &Copy) -> Result<(), TreeError> {
        let by = copy.row.version.map_or(self.set.id, |version| version.change);
        for attempt in 0.. {
            let number = names::copy_number(copy.of, by.device, attempt);
            let ino = InodeNo(number);
            match self.state.rows.inode(ino)? {
                Some(there) => {
                    if self.update_copy(ino, there, copy)? {
                        return Ok(());
                    }
                }
                None if self.is_used(ino)? => {}
                None => return self.make_copy(ino, DentryId(number), copy, by),
            }
        }
        Ok(())
    }

    /// Whether an earlier copy serves: it has this content, or one that the author replaced by this content.
    fn update_copy(&mut self, ino: InodeNo, there: InodeRow, copy: &Copy) -> Result<bool, TreeError> {
        let ContentState::Published(Content { id, .. }) = there.content else { return Ok(false) };
        if id == copy.content.id {
            return Ok(true);
        }
        if copy.row.version.and_then(|version| version.base) != Some(id) {
            return Ok(false);
        }
        let row = InodeRow {
            content: ContentState::Published(copy.content),
            version: copy.row.version,
            mtime: copy.row.mtime,
            ..there
        };
        self.state.put_inode(ino, &row)?;
        Ok(true)
    }

    fn make_copy(&mut self, ino: InodeNo, dentry: DentryId, copy: &Copy, by: ChangeId) -> Result<(), TreeError> {
        let row = InodeRow { nlink: 0, content: ContentState::Published(copy.content), ..copy.row.clone() };
        self.state.put_inode(ino, &row)?;
        let beside = match self.state.rows.links(copy.of)?.into_iter().next() {
            Some(link) => link.place,
            None => nowhere(copy.of).place,
        };
        let place = self.free_place(beside, by)?;
        self.state.attach(dentry, ino, &place)
    }
}

/// A name in the root, for what has none: only rows that no change set of ours makes lead here.
fn nowhere(ino: InodeNo) -> Link {
    let name = VfsName::new(format!("recovered {:x}", ino.0).as_bytes()).expect("a short name of letters");
    Link { dentry: DentryId(ino.0), place: Place { parent: InodeNo::ROOT, name } }
}
