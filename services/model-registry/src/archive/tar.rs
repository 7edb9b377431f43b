//! The tar format as archives use it: plain files one after the other, and nothing else.
//!
//! The `tar` crate reads and writes the header blocks. Its extraction is not used: what reads here never touches a file
//! system, takes only files and directories under the names of an image layout, and holds one piece in memory at a time.

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tar::{EntryType, Header, PaxExtensions};

use super::oci::invalid;
use crate::artifacts::Body;
use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// Longest extended header taken: other writers put the size of a file above 8 GiB there.
const MAX_EXTENSION: u64 = 64 << 10;
/// Most zeros after the end: tar programs fill up to a multiple of 10 KiB, some to more.
const MAX_TRAILER: usize = 1 << 20;

/// Two blocks of zeros end an archive.
pub(super) const END: &[u8] = &[0; 2 * BLOCK];

/// The header of a file, the same for the same arguments.
pub(super) fn header(path: &str, size: u64) -> Result<Bytes> {
    let mut header = Header::new_gnu();
    header.set_path(path).map_err(anyhow::Error::from)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

/// What fills up a file to whole blocks.
pub(super) fn padding(size: u64) -> &'static [u8] {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    &END[..(BLOCK - over) % BLOCK]
}

/// A file in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Without "./" in front. Not a path to be opened.
    pub(super) name: String,
    pub(super) size: u64,
}

/// Reads an archive from a stream.
pub(super) struct Reader<'a> {
    body: Body<'a>,
    /// Arrived and not read yet.
    waiting: Bytes,
    /// Bytes of the current file that are not read yet, and the padding after them.
    left: u64,
    padding: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: Body<'a>) -> Self {
        Self { body, waiting: Bytes::new(), left: 0, padding: 0 }
    }

    /// Goes on to the next file; none at the end of the archive. The file before must have been read.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>> {
        let mut size_before = None;
        loop {
            let padding = std::mem::take(&mut self.padding);
            self.block(padding).await?;
            let block = self.block(BLOCK).await?;
            if block.iter().all(|byte| *byte == 0) {
                self.end().await?;
                return Ok(None);
            }
            let header = checked_header(&block)?;
            let written = header.entry_size().map_err(|_| invalid("has a header with a size that is no number"))?;
            let kind = header.entry_type();
            if kind == EntryType::XHeader {
                if written > MAX_EXTENSION {
                    return Err(invalid(format!(
                        "has an extended header of {written} bytes, at most {MAX_EXTENSION} are taken"
                    )));
                }
                let length = usize::try_from(written).map_err(anyhow::Error::from)?;
                let extension = self.block(length).await?;
                size_before = extended_size(&extension)?;
                self.padding = padding_of(written);
                continue;
            }
            let size = size_before.take().unwrap_or(written);
            let path = header.path_bytes();
            let name = std::str::from_utf8(&path).map_err(|_| invalid("has an entry whose name is not UTF-8"))?;
            let name = name.strip_prefix("./").unwrap_or(name);
            match kind {
                EntryType::Regular => {
                    (self.left, self.padding) = (size, padding_of(size));
                    return Ok(Some(Entry { name: name.to_owned(), size }));
                }
                EntryType::Directory if size == 0 && matches!(name, "" | "." | "blobs/" | "blobs/sha256/") => {}
                EntryType::Directory => {
                    return Err(invalid(format!("has a directory `{name}`, which an image layout has not")));
                }
                other => {
                    return Err(invalid(format!(
                        "has an entry `{name}` that is a {}; only files are taken",
                        kind_name(other)
                    )));
                }
            }
        }
    }

    /// The bytes of the current file.
    pub(super) fn content(&mut self) -> Body<'_> {
        let pieces = stream::try_unfold(self, |reader| async move {
            if reader.left == 0 {
                return Ok(None);
            }
            reader.fill().await?;
            let most = usize::try_from(reader.left).unwrap_or(usize::MAX);
            let piece = reader.waiting.split_to(most.min(reader.waiting.len()));
            reader.left -= piece.len() as u64;
            Ok(Some((piece, reader)))
        });
        pieces.boxed()
    }

    /// Makes sure that something is waiting.
    async fn fill(&mut self) -> Result<()> {
        while self.waiting.is_empty() {
            self.waiting = self.body.try_next().await?.ok_or_else(cut)?;
        }
        Ok(())
    }

    /// Reads exactly `length` bytes.
    async fn block(&mut self, length: usize) -> Result<Bytes> {
        if length <= self.waiting.len() {
            return Ok(self.waiting.split_to(length));
        }
        let mut block = BytesMut::with_capacity(length);
        while block.len() < length {
            self.fill().await?;
            let most = self.waiting.len().min(length - block.len());
            block.extend_from_slice(&self.waiting.split_to(most));
        }
        Ok(block.freeze())
    }

    /// After a first block of zeros: a second one, then zeros at most.
    async fn end(&mut self) -> Result<()> {
        let mut trailer = self.block(BLOCK).await?;
        let mut read = 0;
        loop {
            read += trailer.len();
            if trailer.iter().any(|byte| *byte != 0) || read > MAX_TRAILER {
                return Err(invalid("goes on after its end"));
            }
            trailer = match std::mem::take(&mut self.waiting) {
                waiting if waiting.has_remaining() => waiting,
                _ => match self.body.try_next().await? {
                    Some(bytes) => bytes,
                    None => return Ok(()),
                },
            };
        }
    }
}

fn padding_of(size: u64) -> usize {
    padding(size).len()
}

fn checked_header(block: &[u8]) -> Result<&Header> {
    let header = Header::from_byte_slice(block);
    // The checksum counts its own eight bytes as spaces.
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    if header.cksum().ok() != Some(sum) {
        return Err(invalid("is not a tar archive, or a header in it is damaged"));
    }
    Ok(header)
}

/// The size an extended header gives to the file after it. Other names, links and holes are refused.
fn extended_size(extension: &[u8]) -> Result<Option<u64>> {
    let mut size = None;
    for record in PaxExtensions::new(extension) {
        let unreadable = || invalid("has a damaged extended header");
        let record = record.map_err(|_| unreadable())?;
        let (key, value) = (record.key().map_err(|_| unreadable())?, record.value().map_err(|_| unreadable())?);
        match key {
            "size" => size = Some(value.parse().map_err(|_| unreadable())?),
            "path" | "linkpath" => return Err(invalid(format!("has an extended header with a `{key}`"))),
            key if key.starts_with("GNU.") => return Err(invalid(format!("has an extended header with `{key}`"))),
            _ => {}
        }
    }
    Ok(size)
}

fn kind_name(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link | EntryType::Symlink | EntryType::GNULongLink => "link",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "device",
        EntryType::GNUSparse => "file with holes",
        EntryType::GNULongName | EntryType::XGlobalHeader => "header of another format",
        _ => "thing of an unknown kind",
    }
}

fn cut() -> Error {
    Error::DataLoss { reason: "ARCHIVE_CUT", message: "the archive ends in the middle: send all of it".to_owned() }
}
