//! The stream of rows of a checkpoint, as it comes in pieces.
#![no_main]

use cairnfs::tree::RowStream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let read = |piece: usize| {
        let mut stream = RowStream::default();
        let mut rows = Vec::new();
        for bytes in data.chunks(piece) {
            stream.push(bytes);
            while let Some(row) = stream.next_row()? {
                rows.push(row);
            }
        }
        stream.finish()?;
        Ok::<_, cairnfs::base::codec::DecodeError>(rows)
    };
    assert_eq!(read(data.len().max(1)), read(7));
});
