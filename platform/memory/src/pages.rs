//! The content of a regular file: a sparse map of pages.
//!
//! A page that was never written is absent and reads as zeros; a page that was only reserved (`fallocate`) takes space
//! and reads as zeros. Invariants: bytes of a page beyond the end of the file are zero, and the space counter holds one
//! unit per page in any map.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{FsError, SeekTo, VfsResult};

/// The unit of allocation, in bytes.
pub(crate) const PAGE: u64 = 4096;
/// The largest file, in bytes: Linux offsets are signed.
pub(crate) const SIZE_MAX: u64 = i64::MAX as u64;

/// Pages that exist and may exist, over all files.
#[derive(Debug)]
pub(crate) struct Space {
    used: AtomicU64,
    capacity: u64,
}

impl Space {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self { used: AtomicU64::new(0), capacity: capacity_bytes / PAGE }
    }

    /// Pages in all, and pages free.
    pub(crate) fn pages(&self) -> (u64, u64) {
        (self.capacity, self.capacity.saturating_sub(self.used.load(Ordering::Relaxed)))
    }

    fn take(&self, pages: u64) -> VfsResult<()> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(pages).filter(|after| *after <= self.capacity)
            })
            .map(|_| ())
            .map_err(|_| FsError::NoSpace)
    }

    fn give(&self, pages: u64) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// `None` is reserved space that was not written.
type Page = Option<Box<[u8]>>;

/// The content of one file.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

impl Pages {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Allocated space in units of 512 bytes.
    pub(crate) fn blocks(&self) -> u64 {
        self.pages.len() as u64 * (PAGE / 512)
    }

    pub(crate) fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let length = self.size.saturating_sub(offset).min(u64::from(length));
        let mut bytes = vec![0; length as usize];
        for (index, page) in self.pages.range(offset / PAGE..(offset + length).div_ceil(PAGE)) {
            let Some(page) = page else { continue };
            let start = (index * PAGE).max(offset);
            let end = ((index + 1) * PAGE).min(offset + length);
            let (from, to) = ((start - index * PAGE) as usize, (end - index * PAGE) as usize);
            bytes[(start - offset) as usize..(end - offset) as usize].copy_from_slice(&page[from..to]);
        }
        bytes
    }

    pub(crate) fn write(&mut self, space: &Space, offset: u64, data: &[u8]) -> VfsResult<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX).ok_or(FsError::TooLarge)?;
        space.take(self.absent(offset / PAGE, end.div_ceil(PAGE)))?;
        for index in offset / PAGE..end.div_ceil(PAGE) {
            let start = (index * PAGE).max(offset);
            let stop = ((index + 1) * PAGE).min(end);
            let page = self.pages.entry(index).or_default().get_or_insert_with(zero_page);
            page[(start - index * PAGE) as usize..(stop - index * PAGE) as usize]
                .copy_from_slice(&data[(start - offset) as usize..(stop - offset) as usize]);
        }
        self.size = self.size.max(end);
        Ok(())
    }

    pub(crate) fn set_size(&mut self, space: &Space, size: u64) -> VfsResult<()> {
        if size > SIZE_MAX {
            return Err(FsError::TooLarge);
        }
        if size < self.size {
            let cut = self.pages.split_off(&size.div_ceil(PAGE));
            space.give(cut.len() as u64);
            self.zero_part(size, size.next_multiple_of(PAGE));
        }
        self.size = size;
        Ok(())
    }

    /// Reserves the pages of a range.
    pub(crate) fn reserve(&mut self, space: &Space, offset: u64, end: u64) -> VfsResult<()> {
        let (first, last) = (offset / PAGE, end.div_ceil(PAGE));
        space.take(self.absent(first, last))?;
        for index in first..last {
            self.pages.entry(index).or_default();
        }
        Ok(())
    }

    /// Reserves the pages of a range and makes it read as zeros.
    pub(crate) fn zero(&mut self, space: &Space, offset: u64, end: u64) -> VfsResult<()> {
        self.reserve(space, offset, end)?;
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first >= last {
            self.zero_inside(offset, end);
            return Ok(());
        }
        for (_, page) in self.pages.range_mut(first..last) {
            *page = None;
        }
        self.zero_part(offset, first * PAGE);
        self.zero_part(last * PAGE, end);
        Ok(())
    }

    /// Makes a range read as zeros and gives up its whole pages.
    pub(crate) fn punch(&mut self, space: &Space, offset: u64, end: u64) {
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first >= last {
            return self.zero_inside(offset, end);
        }
        let mut tail = self.pages.split_off(&first);
        let mut kept = tail.split_off(&last);
        self.pages.append(&mut kept);
        space.give(tail.len() as u64);
        self.zero_part(offset, first * PAGE);
        self.zero_part(last * PAGE, end);
    }

    /// The first data or hole at or after `offset`.
    pub(crate) fn seek(&self, offset: u64, to: SeekTo) -> VfsResult<u64> {
        if offset >= self.size {
            return Err(FsError::NoOffset);
        }
        let written = self.pages.range(offset / PAGE..self.size.div_ceil(PAGE)).filter(|(_, page)| page.is_some());
        match to {
            SeekTo::Data => {
                let mut written = written;
                written.next().map(|(index, _)| (index * PAGE).max(offset)).ok_or(FsError::NoOffset)
            }
            SeekTo::Hole => {
                let mut expected = offset / PAGE;
                for (index, _) in written {
                    if *index != expected {
                        break;
                    }
                    expected += 1;
                }
                Ok((expected * PAGE).max(offset).min(self.size))
            }
        }
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self, space: &Space) {
        space.give(self.pages.len() as u64);
        *self = Self::default();
    }

    fn absent(&self, first: u64, last: u64) -> u64 {
        (last - first) - self.pages.range(first..last).count() as u64
    }

    /// Zeroes a range that may touch two pages and covers none.
    fn zero_inside(&mut self, offset: u64, end: u64) {
        let border = offset.next_multiple_of(PAGE).min(end);
        self.zero_part(offset, border);
        self.zero_part(border, end);
    }

    /// Zeroes a range within one page.
    fn zero_part(&mut self, offset: u64, end: u64) {
        if offset >= end {
            return;
        }
        let index = offset / PAGE;
        if let Some(Some(page)) = self.pages.get_mut(&index) {
            page[(offset - index * PAGE) as usize..(end - index * PAGE) as usize].fill(0);
        }
    }
}

fn zero_page() -> Box<[u8]> {
    vec![0; PAGE as usize].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roomy() -> Space {
        Space::new(1 << 30)
    }

    #[test]
    fn a_file_of_the_greatest_size_takes_only_what_was_written() {
        let (space, mut pages) = (roomy(), Pages::default());
        pages.set_size(&space, SIZE_MAX).unwrap();
        pages.write(&space, SIZE_MAX - 3, b"end").unwrap();
        assert_eq!(pages.read(SIZE_MAX - 5, 100), b"\0\0end");
        assert_eq!(pages.blocks(), 8);
        assert_eq!(pages.write(&space, SIZE_MAX - 3, b"ends"), Err(FsError::TooLarge));
        assert_eq!(pages.seek(0, SeekTo::Data), Ok((SIZE_MAX / PAGE) * PAGE));
        assert_eq!(pages.seek(SIZE_MAX - 1, SeekTo::Hole), Ok(SIZE_MAX));
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let (space, mut pages) = (roomy(), Pages::default());
        pages.write(&space, 0, &[7; 10_000]).unwrap();
        pages.set_size(&space, 5000).unwrap();
        pages.set_size(&space, 10_000).unwrap();
        let bytes = pages.read(0, 20_000);
        assert_eq!(bytes.len(), 10_000);
        assert!(bytes[..5000].iter().all(|b| *b == 7) && bytes[5000..].iter().all(|b| *b == 0));
        assert_eq!(space.pages().0 - space.pages().1, 2);
    }

    #[test]
    fn a_punched_range_is_zero_and_its_whole_pages_are_free() {
        let (space, mut pages) = (roomy(), Pages::default());
        pages.write(&space, 0, &[1; 5 * PAGE as usize]).unwrap();
        pages.punch(&space, 100, 3 * PAGE + 100);
        let bytes = pages.read(0, 5 * PAGE as u32);
        assert!(bytes[..100].iter().all(|b| *b == 1));
        assert!(bytes[100..3 * PAGE as usize + 100].iter().all(|b| *b == 0));
        assert!(bytes[3 * PAGE as usize + 100..].iter().all(|b| *b == 1));
        assert_eq!(pages.blocks(), 3 * 8);
        assert_eq!(pages.seek(0, SeekTo::Hole), Ok(PAGE));
        assert_eq!(pages.seek(PAGE, SeekTo::Data), Ok(3 * PAGE));
        pages.punch(&space, 3 * PAGE + 4000, 4 * PAGE + 10);
        let bytes = pages.read(3 * PAGE + 3999, 110);
        assert_eq!((bytes[0], bytes[1], bytes[106], bytes[107]), (1, 0, 0, 1));
    }

    #[test]
    fn a_full_store_refuses_before_it_takes_a_byte() {
        let (space, mut pages) = (Space::new(2 * PAGE), Pages::default());
        assert_eq!(pages.write(&space, 0, &[1; 3 * PAGE as usize]), Err(FsError::NoSpace));
        assert_eq!((pages.size(), pages.blocks()), (0, 0));
        pages.write(&space, 0, &[1; 2 * PAGE as usize]).unwrap();
        assert_eq!(pages.reserve(&space, 0, 3 * PAGE), Err(FsError::NoSpace));
        pages.clear(&space);
        assert_eq!(space.pages().1, 2);
    }
}
