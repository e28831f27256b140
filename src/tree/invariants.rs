//! The invariants of the namespace, one function for each. For tests, and for whoever doubts a database.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_platform_api::{FileKind, InodeNo, VfsName};

use super::keys::{self, family};
use super::namespace::{Namespace, decoded};
use super::rows::{DentryRow, InodeRow, Place};
use super::{DentryId, TreeError};
use crate::base::codec::DecodeError;
use crate::store::Rows;

/// All of a namespace, in memory.
struct All {
    inodes: BTreeMap<InodeNo, InodeRow>,
    names: BTreeMap<Place, DentryRow>,
    links: BTreeMap<(InodeNo, DentryId), Place>,
}

/// What is wrong with the namespace: nothing, hopefully. Nobody changes it meanwhile.
///
/// # Errors
/// [`TreeError`] where rows cannot be read.
pub fn check_invariants(rows: &impl Rows) -> Result<Vec<String>, TreeError> {
    let all = All::read(rows)?;
    let mut wrong = Vec::new();
    all.names_and_links_agree(&mut wrong);
    all.link_counts_are_right(&mut wrong);
    all.everything_is_reachable(&mut wrong);
    for (place, row) in &all.names {
        if all.inodes.get(&row.ino).is_none_or(|inode| inode.kind != row.kind) {
            wrong.push(format!("{place:?} names {:?}, which is not there or of another kind", row.ino));
        }
    }
    for ino in all.inodes.keys() {
        if rows.get(&keys::alias(*ino))?.is_some() || rows.get(&keys::grave(*ino))?.is_some() {
            wrong.push(format!("{ino:?} is there, and merged or removed"));
        }
    }
    Ok(wrong)
}

impl All {
    fn read(rows: &impl Rows) -> Result<Self, TreeError> {
        let mut all = Self { inodes: BTreeMap::new(), names: BTreeMap::new(), links: BTreeMap::new() };
        let mut numbers = Vec::new();
        rows.scan_family(family::INODE, &mut |key, _| {
            numbers.extend(keys::number(key));
            ControlFlow::Continue(())
        })?;
        let mut failure = Ok(());
        rows.scan_family(family::NAME, &mut |key, value| {
            let parent = InodeNo(keys::number(key).unwrap_or_default());
            let name = VfsName::new(&key[9..]).map_err(|_| DecodeError::Invalid("a name"));
            match decoded(key, name.and_then(|name| Ok((Place { parent, name }, DentryRow::decode(value)?)))) {
                Ok((place, row)) => {
                    all.names.insert(place, row);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure?;
        let mut linked = Vec::new();
        rows.scan_family(family::LINK, &mut |key, _| {
            linked.extend(keys::number(key));
            ControlFlow::Continue(())
        })?;
        linked.dedup();
        for ino in linked.into_iter().map(InodeNo) {
            all.links.extend(rows.links(ino)?.into_iter().map(|link| ((ino, link.dentry), link.place)));
        }
        for ino in numbers.into_iter().map(InodeNo) {
            all.inodes.extend(rows.inode(ino)?.map(|row| (ino, row)));
        }
        Ok(all)
    }

    fn names_and_links_agree(&self, wrong: &mut Vec<String>) {
        for (place, row) in &self.names {
            if self.links.get(&(row.ino, row.dentry)) != Some(place) {
                wrong.push(format!("{place:?} is not a link of {:?}", row.ino));
            }
        }
        for ((ino, dentry), place) in &self.links {
            if self.names.get(place).is_none_or(|row| row.dentry != *dentry || row.ino != *ino) {
                wrong.push(format!("{dentry:?} of {ino:?} is not the name at {place:?}"));
            }
        }
    }

    fn link_counts_are_right(&self, wrong: &mut Vec<String>) {
        let mut counts: BTreeMap<InodeNo, u32> = BTreeMap::new();
        for (place, row) in &self.names {
            let counted = if row.kind == FileKind::Directory { place.parent } else { row.ino };
            *counts.entry(counted).or_default() += 1;
        }
        for (ino, row) in &self.inodes {
            let expected = counts.get(ino).copied().unwrap_or_default() + if row.is_directory() { 2 } else { 0 };
            if row.nlink != expected {
                wrong.push(format!("{ino:?} counts {} links, not {expected}", row.nlink));
            }
        }
    }

    /// Every inode but the root has a name, a directory exactly one, and the way up ends in the root.
    fn everything_is_reachable(&self, wrong: &mut Vec<String>) {
        let mut parents: BTreeMap<InodeNo, Vec<InodeNo>> = BTreeMap::new();
        for ((ino, _), place) in &self.links {
            parents.entry(*ino).or_default().push(place.parent);
        }
        for (ino, row) in self.inodes.iter().filter(|(ino, _)| **ino != InodeNo::ROOT) {
            let names = parents.get(ino).map_or(&[][..], Vec::as_slice);
            if names.is_empty() || row.is_directory() && names.len() > 1 {
                wrong.push(format!("{ino:?} has {} names", names.len()));
            }
            for parent in names {
                let mut at = *parent;
                let mut steps = 0;
                while at != InodeNo::ROOT && steps <= self.inodes.len() {
                    at = match parents.get(&at).and_then(|parents| parents.first()) {
                        Some(up) if self.inodes.get(&at).is_some_and(InodeRow::is_directory) => *up,
                        _ => break,
                    };
                    steps += 1;
                }
                if at != InodeNo::ROOT {
                    wrong.push(format!("{ino:?} cannot be reached from the root"));
                }
            }
        }
    }
}
