//! The rows that a change set is applied to: all of them as they are, or the published ones beside a pending change that
//! stays where it is.
//!
//! Beside a pending change, a row that has a pre-image reads as that, and what is written is kept apart. A cut that
//! publishes a few of very many pending changes need not undo and redo them all.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::keys;
use super::namespace::Images;
use super::rows;
use crate::base::codec::DecodeError;
use crate::store::{GROUP_LENGTH, Operation, Rows, StoreError, Visitor};

/// See the module.
pub(super) struct Surface<'a, 'b> {
    pub rows: &'a mut Operation<'b>,
    /// What was written beside the pending change.
    beside: Option<Images>,
}

impl<'a, 'b> Surface<'a, 'b> {
    /// All rows as they are.
    pub fn of(rows: &'a mut Operation<'b>) -> Self {
        Self { rows, beside: None }
    }

    /// The published rows.
    pub fn published(rows: &'a mut Operation<'b>) -> Self {
        Self { rows, beside: Some(Images::new()) }
    }

    pub fn set(&mut self, key: &[u8], value: Option<Bytes>) {
        match &mut self.beside {
            Some(beside) => {
                beside.insert(key.into(), value);
            }
            None => self.rows.set(key, value),
        }
    }

    /// What was written beside the pending change.
    pub fn written(self) -> Images {
        self.beside.unwrap_or_default()
    }
}

impl Rows for Surface<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(beside) = &self.beside else { return self.rows.get(key) };
        if let Some(value) = beside.get(key) {
            return Ok(value.clone());
        }
        match self.rows.get(&keys::preimage(key))? {
            Some(image) => Ok(image_of(&image).unwrap_or_default()),
            None => self.rows.get(key),
        }
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        let Some(beside) = &self.beside else { return self.rows.scan_from(prefix, start, visit) };
        if prefix.len() < GROUP_LENGTH {
            // Whether a family has rows at all is asked of all rows, which is on the safe side.
            return self.rows.scan_from(prefix, start, visit);
        }
        let mut merged = Images::new();
        self.rows.scan(prefix, &mut |key, value| {
            merged.insert(key.into(), Some(Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        self.rows.scan(&keys::preimage(prefix), &mut |key, image| {
            if let (Some(key), Ok(old)) = (keys::of_preimage(key), image_of(image)) {
                merged.insert(key.into(), old);
            }
            ControlFlow::Continue(())
        })?;
        let written = beside.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let written = written.take_while(|(key, _)| key.starts_with(prefix));
        merged.extend(written.map(|(key, value)| (key.clone(), value.clone())));
        for (key, value) in merged.range::<[u8], _>((start, Bound::Unbounded)) {
            if let Some(value) = value {
                if visit(key, value).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn image_of(image: &[u8]) -> Result<Option<Bytes>, DecodeError> {
    Ok(rows::decode_image(image)?.map(Bytes::copy_from_slice))
}
