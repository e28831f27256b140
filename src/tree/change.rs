//! Local changes: an operation of the store with the stripes of its inodes.

use std::ops::Deref;
use std::sync::Arc;

use cairn_platform_api::{InodeNo, VfsName};
use parking_lot::{MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::namespace::{Namespace, State};
use super::rows::{ContentState, InodeRow, Place};
use super::{DentryId, Numbers, Tree, TreeError, keys};
use crate::store::{Operation, Reading, Rows};

/// Enough that operations on different inodes seldom meet in one.
const STRIPES: usize = 256;

/// Locks of inodes, in stripes: each guards the rows of the inodes that fall on it. Taken in ascending order, after the
/// gate.
pub(super) struct Stripes(Vec<RwLock<()>>);

impl Stripes {
    pub fn new() -> Self {
        Self((0..STRIPES).map(|_| RwLock::new(())).collect())
    }

    /// The stripes of these inodes, ascending, without repetition.
    fn of(inos: &[InodeNo]) -> Vec<usize> {
        let mut stripes: Vec<_> = inos.iter().map(|ino| (ino.0 ^ (ino.0 >> 40)) as usize % STRIPES).collect();
        stripes.sort_unstable();
        stripes.dedup();
        stripes
    }
}

/// What is gone with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detached {
    /// The dentry.
    pub dentry: DentryId,
    /// The inode it named.
    pub ino: InodeNo,
    /// The inode's row as it is now, with one name less.
    pub row: InodeRow,
    /// Whether it was the last name, and the row is gone from the tree.
    pub last: Last,
}

/// Whether a name was an inode's last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// The inode is gone from the tree.
    Yes,
    /// It has other names.
    No,
}

/// Inodes locked for reading: no change of them happens meanwhile. Holds the gate.
pub struct View<'a> {
    _stripes: Vec<RwLockReadGuard<'a, ()>>,
    rows: Reading<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(tree: &'a Tree, inos: &[InodeNo]) -> Self {
        let rows = tree.store.reading();
        let stripes = Stripes::of(inos).into_iter().map(|stripe| tree.stripes.0[stripe].read()).collect();
        Self { _stripes: stripes, rows }
    }
}

impl<'a> Deref for View<'a> {
    type Target = Reading<'a>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

/// A local change. Reads through [`Namespace`] see its own writes. Nothing has happened before [`Change::commit`]; a
/// change that is dropped is undone.
///
/// It holds the gate of the store, so the thread must not start another one, nor call anything of [`Tree`] that does.
#[must_use = "a change that is dropped is undone"]
pub struct Change<'a> {
    rows: Operation<'a>,
    stripes: Vec<RwLockWriteGuard<'a, ()>>,
    topology: Option<MutexGuard<'a, ()>>,
    numbers: &'a Arc<Numbers>,
    reserved: Option<u64>,
}

impl<'a> Change<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        inos: &[InodeNo],
        topology: Option<MutexGuard<'a, ()>>,
    ) -> Result<Self, TreeError> {
        let rows = tree.store.operation()?;
        let stripes = Stripes::of(inos).into_iter().map(|stripe| tree.stripes.0[stripe].write()).collect();
        Ok(Self { rows, stripes, topology, numbers: &tree.numbers, reserved: None })
    }

    fn state(&mut self) -> State<'_, 'a> {
        State::pending(&mut self.rows)
    }

    /// A number for a new inode or dentry.
    pub fn allocate(&mut self) -> u64 {
        let (number, block) = self.numbers.next();
        if let Some(block) = block {
            Numbers::reserve(&mut self.rows, block);
            self.reserved = self.reserved.max(Some(block));
        }
        number
    }

    /// Writes the row of an inode that is there. Its link count stays what the tree made it.
    ///
    /// # Errors
    /// [`TreeError::NoInode`], and where rows cannot be read.
    pub fn put_inode(&mut self, ino: InodeNo, row: &InodeRow) -> Result<(), TreeError> {
        match self.rows.inode(ino)? {
            Some(old) if old == *row => Ok(()),
            Some(old) if old.nlink != row.nlink => {
                self.state().put_inode(ino, &InodeRow { nlink: old.nlink, ..row.clone() })
            }
            Some(_) => self.state().put_inode(ino, row),
            None => Err(TreeError::NoInode(ino)),
        }
    }

    /// Makes an inode (its number is new, see [`Change::allocate`]) with its first name, which is free.
    ///
    /// # Errors
    /// [`TreeError::Taken`], and where rows cannot be read.
    pub fn create(
        &mut self,
        ino: InodeNo,
        parent: InodeNo,
        name: &VfsName,
        row: &InodeRow,
    ) -> Result<DentryId, TreeError> {
        let dentry = DentryId(self.allocate());
        self.state().put_inode(ino, row)?;
        self.attach(dentry, ino, parent, name)?;
        Ok(dentry)
    }

    /// Gives an inode one more name, which is free. `dentry` is a new number.
    ///
    /// # Errors
    /// [`TreeError::Taken`], [`TreeError::NoInode`], and where rows cannot be read.
    pub fn attach(&mut self, dentry: DentryId, ino: InodeNo, parent: InodeNo, name: &VfsName) -> Result<(), TreeError> {
        self.state().attach(dentry, ino, &Place { parent, name: name.clone() })
    }

    /// Takes a name away, and the inode's row with its last name. A directory is empty.
    ///
    /// # Errors
    /// [`TreeError::NoName`], [`TreeError::NotEmpty`], and where rows cannot be read.
    pub fn detach(&mut self, parent: InodeNo, name: &VfsName) -> Result<Detached, TreeError> {
        let place = Place { parent, name: name.clone() };
        let found = self.rows.lookup(parent, name)?.ok_or_else(|| TreeError::NoName(place.clone()))?;
        self.state().detach(found.dentry, found.ino, &place)?;
        let row = self.rows.inode(found.ino)?.ok_or(TreeError::NoInode(found.ino))?;
        let last = if row.is_directory() {
            if !self.rows.is_empty(found.ino)? {
                return Err(TreeError::NotEmpty(found.ino));
            }
            Last::Yes
        } else if row.nlink == 0 {
            Last::Yes
        } else {
            Last::No
        };
        if last == Last::Yes {
            self.state().remove_inode(found.ino)?;
            let snapshot = keys::snapshot(found.ino);
            if matches!(row.content, ContentState::Local { .. }) && self.rows.get(&snapshot)?.is_some() {
                self.rows.delete(&snapshot);
            }
        }
        Ok(Detached { dentry: found.dentry, ino: found.ino, row, last })
    }

    /// Moves a name to a place that is free. A directory does not go below itself (see [`Namespace::is_within`]).
    ///
    /// # Errors
    /// [`TreeError::NoName`], [`TreeError::Taken`], and where rows cannot be read.
    pub fn move_name(
        &mut self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
    ) -> Result<(), TreeError> {
        let from = Place { parent, name: name.clone() };
        let to = Place { parent: new_parent, name: new_name.clone() };
        let found = self.rows.lookup(parent, name)?.ok_or_else(|| TreeError::NoName(from.clone()))?;
        let mut state = self.state();
        state.detach(found.dentry, found.ino, &from)?;
        state.attach(found.dentry, found.ino, &to)
    }

    /// Swaps what two names mean.
    ///
    /// # Errors
    /// [`TreeError::NoName`], and where rows cannot be read.
    pub fn swap_names(
        &mut self,
        parent: InodeNo,
        name: &VfsName,
        other_parent: InodeNo,
        other_name: &VfsName,
    ) -> Result<(), TreeError> {
        let one = Place { parent, name: name.clone() };
        let other = Place { parent: other_parent, name: other_name.clone() };
        let first = self.rows.lookup(parent, name)?.ok_or_else(|| TreeError::NoName(one.clone()))?;
        let second = self.rows.lookup(other_parent, other_name)?.ok_or_else(|| TreeError::NoName(other.clone()))?;
        if first.dentry == second.dentry {
            return Ok(());
        }
        let mut state = self.state();
        state.detach(first.dentry, first.ino, &one)?;
        state.detach(second.dentry, second.ino, &other)?;
        state.attach(first.dentry, first.ino, &other)?;
        state.attach(second.dentry, second.ino, &one)
    }

    /// The rows, for families outside the namespace (see [`super::keys::family`]): written in the same operation.
    pub fn rows(&mut self) -> &mut Operation<'a> {
        &mut self.rows
    }

    /// Makes it happen, in memory: others see it from now on, and the next commit of the store makes it durable.
    pub fn commit(self) {
        let Self { rows, stripes, topology, numbers, reserved } = self;
        rows.commit();
        if let Some(block) = reserved {
            numbers.reserved(block);
        }
        drop(stripes);
        drop(topology);
    }
}

impl<'a> Deref for Change<'a> {
    type Target = Operation<'a>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}
