//! The safetensors header of a plan's checkpoint: made when writing, expected when reading.

use std::collections::HashMap;

use safetensors::tensor::{Dtype as EntryDtype, Metadata, TensorInfo as Entry};
use serde::Deserialize;

use super::fail;
use super::meta::{FORMAT, Meta};
use super::source::Source;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::layout::index;
use crate::numerics::FpEnv;
use crate::plan::{BufferInfo, Plan};
use crate::reserve::{room, zeros};
use crate::spec::Spec;

/// Key of our JSON in the container's metadata.
const KEY: &str = "lowbit";

/// Name of the last entry.
const SUMS: &str = "lowbit/crc32";

/// A safetensors header may not be longer (the format's own cap).
const LONGEST: u64 = 100_000_000;

/// What stands before the data, and where the data of each buffer stands.
#[derive(Debug)]
pub(super) struct Header {
    /// Length, JSON and padding, as in the file.
    pub(super) bytes: Vec<u8>,
    /// The plan's buffers in file order, each with its first byte in the file.
    pub(super) entries: Vec<(usize, u64)>,
    /// First byte of the checksums, the last entry.
    pub(super) sums_at: u64,
}

impl Header {
    /// What a checkpoint of the plan's tensors begins with.
    pub(super) fn new(plan: &Plan, step: i64) -> Result<Self> {
        room(written_bytes(plan))?;
        let meta = serde_json::to_string(&Meta::new(plan, step)).map_err(internal)?;
        let metadata = HashMap::from([(KEY.to_owned(), meta)]);
        let order = order(plan);
        let metadata = Metadata::new(Some(metadata), entries(plan, &order)).map_err(internal)?;
        let mut json = serde_json::to_vec(&metadata).map_err(internal)?;
        // The data begins at a multiple of 8, as the container's own writer has it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        Ok(Self::behind(bytes, plan, order))
    }

    fn behind(bytes: Vec<u8>, plan: &Plan, order: Vec<usize>) -> Self {
        let mut at = bytes.len() as u64;
        let entries = order
            .into_iter()
            .map(|buffer| {
                let start = at;
                at += index(plan.buffers[buffer].bytes) as u64;
                (buffer, start)
            })
            .collect();
        Self {
            bytes,
            entries,
            sums_at: at,
        }
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.sums_at + self.sums_bytes() as u64
    }

    /// Bytes of the checksums: of the header and of every entry before.
    pub(super) fn sums_bytes(&self) -> usize {
        4 * (1 + self.entries.len())
    }

    /// Reads and checks what a source begins with, and all its checksums. Returns them with the
    /// header, the metadata, and a plan of the tensors that are in the file.
    pub(super) fn read(source: &dyn Source) -> Result<Opened> {
        // Numbers are read by arithmetic.
        let _env = FpEnv::ieee();
        let length = source.length()?;
        let bytes = header_bytes(source, length)?;
        room(parsed_bytes(&bytes[8..]))?;
        let corrupt = |text: String| fail(Status::FormatCorrupt, text);
        let container: Metadata = serde_json::from_slice(&bytes[8..])
            .map_err(|error| corrupt(format!("safetensors header: {error}")))?;
        let text = container
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(KEY));
        let text = text.ok_or_else(|| {
            let text = "a safetensors file, but not one of lowbit";
            fail(Status::FormatMagic, text.to_owned())
        })?;
        check_version(text)?;
        let sums = read_sums(source, length, &bytes, &container)?;
        check_spec(text)?;
        let meta: Meta = serde_json::from_str(text)
            .map_err(|error| corrupt(format!("metadata {KEY}: {error}")))?;
        if meta.step < 0 {
            return Err(corrupt(format!("step is {}", meta.step)));
        }
        let plan = meta.plan().map_err(|error| {
            let status = match error.status() {
                Status::InvalidArgument => Status::FormatCorrupt,
                other => other,
            };
            fail(status, format!("metadata {KEY}: {error}"))
        })?;
        if Meta::new(&plan, meta.step) != meta {
            return Err(corrupt(format!(
                "metadata {KEY} describes states otherwise than its spec has them"
            )));
        }
        let order = order(&plan);
        let expected = entries(&plan, &order);
        if container.offset_keys().len() != expected.len() {
            return Err(corrupt(format!(
                "there are {} entries, {} belong here",
                container.offset_keys().len(),
                expected.len()
            )));
        }
        for (name, want) in &expected {
            let same = |found: &Entry| {
                found.dtype == want.dtype
                    && found.shape == want.shape
                    && found.data_offsets == want.data_offsets
            };
            if !container.info(name).is_some_and(same) {
                return Err(corrupt(format!(
                    "entry {name:?} is missing or has another type, shape or place"
                )));
            }
        }
        for (buffer, sum) in order.iter().zip(&sums[1..]) {
            // Nothing else reads an entry without bytes.
            if plan.buffers[*buffer].bytes == 0 && *sum != crc32fast::hash(&[]) {
                return Err(altered(&plan.entry_name(&plan.buffers[*buffer])));
            }
        }
        Ok(Opened {
            header: Self::behind(bytes, &plan, order),
            meta,
            plan,
            sums,
        })
    }
}

/// What [`Header::read`] found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) meta: Meta,
    /// Of the tensors in the file, with its buffers in the plan's order.
    pub(super) plan: Plan,
    /// Of the header, then of each entry in file order.
    pub(super) sums: Vec<u32>,
}

/// What making the header of a plan has in use at most, in bytes: texts, and structs for all buffers.
fn written_bytes(plan: &Plan) -> usize {
    const TABLE: usize = 24 << 10;
    let buffer = |info: &BufferInfo| {
        let tensor = &plan.tensors[info.tensor].info;
        768 + 8 * tensor.name.len() + 96 * tensor.shape.len()
    };
    let rules = plan.spec.overrides.len();
    let tables = plan.spec.states().len() * (1 + rules.min(plan.tensors.len())) * TABLE;
    512 * rules + tables + plan.buffers.iter().map(buffer).sum::<usize>()
}

/// What a header has in use at most while it is taken apart, in bytes: texts, structs for its objects,
/// and lists, which have room for twice and are moved when they grow.
fn parsed_bytes(json: &[u8]) -> usize {
    let count = |byte| json.iter().filter(|found| **found == byte).count();
    let parts = 4 * json.len() + 1024 * count(b'{') + 96 * count(b'[') + 24 * count(b',');
    // Objects that mean anything are not that short.
    (32 << 10) + parts.min(96 * json.len())
}

/// Length and JSON. What is allocated is bounded by the source's length.
fn header_bytes(source: &dyn Source, length: u64) -> Result<Vec<u8>> {
    if length < 8 {
        return Err(fail(
            Status::FormatTruncated,
            format!("{length} bytes are no checkpoint"),
        ));
    }
    let mut first = [0; 8];
    source.read_at(0, &mut first)?;
    let json_bytes = u64::from_le_bytes(first);
    if json_bytes > LONGEST {
        return Err(fail(
            Status::FormatMagic,
            "not a safetensors file (its header's length is absurd)".to_owned(),
        ));
    }
    if json_bytes > length - 8 {
        return Err(fail(
            Status::FormatTruncated,
            format!("the header has {json_bytes} bytes, the file only {length}"),
        ));
    }
    let mut bytes = zeros(8 + json_bytes as usize)?;
    source.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn check_version(text: &str) -> Result<()> {
    /// All that every version has.
    #[derive(Deserialize)]
    struct Version {
        format: i64,
    }
    let version: Version = serde_json::from_str(text)
        .map_err(|error| fail(Status::FormatCorrupt, format!("metadata {KEY}: {error}")))?;
    if version.format == FORMAT {
        return Ok(());
    }
    Err(fail(
        Status::FormatVersion,
        format!("format {}; this library reads {FORMAT}", version.format),
    ))
}

/// The header is as it was written: a spec that is not known here is that of a newer library.
fn check_spec(text: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Known {
        #[serde(rename = "spec")]
        _spec: Option<Spec>,
    }
    match serde_json::from_str::<Known>(text) {
        Err(error) if error.is_data() => Err(fail(
            Status::Unsupported,
            format!("metadata {KEY}: this version does not know the spec: {error}"),
        )),
        _ => Ok(()),
    }
}

/// The last entry, after comparing the length of the file and the header's own checksum.
fn read_sums(
    source: &dyn Source,
    length: u64,
    bytes: &[u8],
    container: &Metadata,
) -> Result<Vec<u32>> {
    let corrupt = |text: String| fail(Status::FormatCorrupt, text);
    let want = (bytes.len() as u64).saturating_add(container.data_len() as u64);
    if length < want {
        return Err(fail(
            Status::FormatTruncated,
            format!("{want} bytes are announced, {length} are there"),
        ));
    }
    if length > want {
        return Err(corrupt(format!(
            "{} bytes follow the last entry",
            length - want
        )));
    }
    let entry = container.info(SUMS).filter(|entry| {
        let (start, end) = entry.data_offsets;
        (end - start).is_multiple_of(4) && end > start && end == container.data_len()
    });
    let Some(entry) = entry else {
        return Err(corrupt(format!("the last entry is not {SUMS}")));
    };
    let (start, end) = entry.data_offsets;
    let mut stored = zeros(end - start)?;
    source.read_at(length - stored.len() as u64, &mut stored)?;
    let sums: Vec<_> = stored
        .as_chunks()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    if sums[0] != crc32fast::hash(bytes) {
        return Err(altered("the header"));
    }
    Ok(sums)
}

/// A checksum that differs.
pub(super) fn altered(what: &str) -> Error {
    fail(
        Status::FormatCorrupt,
        format!("the checksum of {what} differs: the file was altered"),
    )
}

/// By size of element, the largest first, so that every entry is aligned; else the plan's order.
fn order(plan: &Plan) -> Vec<usize> {
    let mut order: Vec<_> = (0..plan.buffers.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(plan.buffers[i].dtype.size()));
    order
}

fn entries(plan: &Plan, order: &[usize]) -> Vec<(String, Entry)> {
    let mut at = 0;
    let mut entry = |name: String, dtype, shape: Vec<usize>, bytes| {
        let data_offsets = (at, at + bytes);
        at += bytes;
        (
            name,
            Entry {
                dtype,
                shape,
                data_offsets,
            },
        )
    };
    let mut list = Vec::with_capacity(order.len() + 1);
    for &i in order {
        let buffer = &plan.buffers[i];
        let dtype = match buffer.dtype {
            Dtype::U8 => EntryDtype::U8,
            Dtype::I8 => EntryDtype::I8,
            Dtype::U16 => EntryDtype::U16,
            _ => EntryDtype::F32,
        };
        let shape = buffer.shape.iter().map(|extent| index(*extent)).collect();
        list.push(entry(
            plan.entry_name(buffer),
            dtype,
            shape,
            index(buffer.bytes),
        ));
    }
    let sums = 1 + order.len();
    list.push(entry(
        SUMS.to_owned(),
        EntryDtype::U8,
        vec![sums, 4],
        4 * sums,
    ));
    list
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::new(Status::Internal, format!("checkpoint header: {error}"))
}
