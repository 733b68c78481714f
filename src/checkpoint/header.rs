//! The safetensors header of a plan's checkpoint: made when writing, compared when reading.

use std::collections::HashMap;
use std::io::Read;

use safetensors::tensor::{Dtype as EntryDtype, Metadata, TensorInfo as Entry};
use serde::{Deserialize, Serialize};

use super::io;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::layout::index;
use crate::plan::{BufferInfo, Plan};
use crate::spec::Spec;

/// Raised when an older library could misread a newer file.
const FORMAT: i64 = 1;

/// Key of our JSON in the container's metadata.
const KEY: &str = "lowbit";

/// Name of the last entry.
const SUMS: &str = "lowbit/crc32";

/// A safetensors header may not be longer (the format's own cap).
const LONGEST: u64 = 100_000_000;

/// The JSON under [`KEY`].
#[derive(Serialize, Deserialize)]
struct Meta {
    format: i64,
    step: i64,
    spec: Spec,
    tensors: Vec<Tensor>,
}

/// One tensor; `global_shape` and `offset` only for shards.
#[derive(Serialize, Deserialize, PartialEq)]
struct Tensor {
    name: String,
    shape: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    global_shape: Option<Vec<i64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<Vec<i64>>,
}

/// A header and the order of the data behind it.
pub(super) struct Header {
    /// Length, JSON and padding, as in the file.
    pub(super) bytes: Vec<u8>,
    /// Indices of the plan's buffers in file order.
    pub(super) order: Vec<usize>,
    /// Bytes behind the header, checksums included.
    pub(super) data_bytes: u64,
}

impl Header {
    pub(super) fn new(plan: &Plan, step: i64) -> Result<Self> {
        let meta = Meta {
            format: FORMAT,
            step,
            spec: plan.spec.clone(),
            tensors: tensors(plan),
        };
        let meta = serde_json::to_string(&meta).map_err(internal)?;
        let order = order(plan);
        let entries = entries(plan, &order);
        let data_bytes = entries
            .last()
            .map_or(0, |(_, entry)| entry.data_offsets.1 as u64);
        let metadata = HashMap::from([(KEY.to_owned(), meta)]);
        let metadata = Metadata::new(Some(metadata), entries).map_err(internal)?;
        let mut json = serde_json::to_vec(&metadata).map_err(internal)?;
        // The data begins at a multiple of 8, as the container's own writer has it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        Ok(Self {
            bytes,
            order,
            data_bytes,
        })
    }

    /// Reads the header of a source of `length` bytes and compares it with the plan's.
    pub(super) fn read(plan: &Plan, source: &mut dyn Read, length: u64) -> Result<(Self, i64)> {
        let magic = |text: &str| fail(Status::FormatMagic, text.to_owned());
        let truncated = |text: String| fail(Status::FormatTruncated, text);
        let mut bytes = vec![0; 8];
        if length < 8 {
            return Err(truncated(format!("{length} bytes are no checkpoint")));
        }
        source.read_exact(&mut bytes).map_err(io)?;
        let json_bytes = bytes
            .iter()
            .rev()
            .fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        if json_bytes > LONGEST {
            return Err(magic(
                "not a safetensors file (its header's length is absurd)",
            ));
        }
        if json_bytes > length - 8 {
            return Err(truncated(format!(
                "the header has {json_bytes} bytes, the file only {length}"
            )));
        }
        // Bounded by the length of the file.
        source
            .take(json_bytes)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&bytes[8..]).map_err(|error| {
            fail(
                Status::FormatCorrupt,
                format!("safetensors header: {error}"),
            )
        })?;
        let text = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(KEY));
        let text = text.ok_or_else(|| magic("a safetensors file, but not one of lowbit"))?;
        let corrupt = |error| fail(Status::FormatCorrupt, format!("metadata {KEY}: {error}"));
        let version: serde_json::Value = serde_json::from_str(text).map_err(corrupt)?;
        match version.get("format").and_then(serde_json::Value::as_i64) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(fail(
                    Status::FormatVersion,
                    format!("format {other}; this library reads {FORMAT}"),
                ));
            }
            None => return Err(fail(Status::FormatCorrupt, "no format version".to_owned())),
        }
        let meta: Meta = serde_json::from_value(version).map_err(corrupt)?;
        let order = compare(plan, &meta, &metadata)?;
        let data_bytes = metadata.data_len() as u64;
        let want = bytes.len() as u64 + data_bytes;
        if length < want {
            return Err(truncated(format!(
                "{want} bytes are announced, {length} are there"
            )));
        }
        if length > want {
            return Err(fail(
                Status::FormatCorrupt,
                format!("{} bytes follow the last entry", length - want),
            ));
        }
        Ok((
            Self {
                bytes,
                order,
                data_bytes,
            },
            meta.step,
        ))
    }
}

/// Whether the file is this plan's. Tensors are matched by name, so that trainers may list them in
/// another order. Returns the plan's buffers in the order of the file.
fn compare(plan: &Plan, meta: &Meta, metadata: &Metadata) -> Result<Vec<usize>> {
    let mismatch = |text: String| fail(Status::FormatMismatch, text);
    if meta.spec != plan.spec {
        return Err(mismatch(format!(
            "written under the spec {}, the plan has {}",
            meta.spec.to_json()?,
            plan.spec.to_json()?
        )));
    }
    let file: HashMap<_, _> = meta
        .tensors
        .iter()
        .map(|tensor| (&tensor.name, tensor))
        .collect();
    for want in &tensors(plan) {
        match file.get(&want.name) {
            Some(got) if *got == want => {}
            Some(got) => {
                return Err(mismatch(format!(
                    "the file has {}, the plan {}",
                    describe(got),
                    describe(want)
                )));
            }
            None => return Err(mismatch(format!("the file lacks {}", describe(want)))),
        }
    }
    if meta.tensors.len() != plan.tensors.len() {
        return Err(mismatch(format!(
            "the file has {} tensors, the plan {}",
            meta.tensors.len(),
            plan.tensors.len()
        )));
    }

    let corrupt = |text: String| fail(Status::FormatCorrupt, text);
    let wanted = entries(plan, &order(plan));
    let wanted: HashMap<_, _> = wanted
        .iter()
        .map(|(name, entry)| (name.as_str(), entry))
        .collect();
    let names: HashMap<_, _> = plan
        .buffers
        .iter()
        .enumerate()
        .map(|(i, buffer)| (entry_name(plan, buffer), i))
        .collect();
    let found = metadata.offset_keys();
    if found.len() != wanted.len() || found.last().is_none_or(|last| last != SUMS) {
        return Err(corrupt(format!(
            "there are {} entries, {} belong here",
            found.len(),
            wanted.len()
        )));
    }
    let mut order = Vec::with_capacity(found.len());
    for name in &found {
        match (metadata.info(name), wanted.get(name.as_str())) {
            (Some(got), Some(want)) if got.dtype == want.dtype && got.shape == want.shape => {}
            _ => {
                return Err(corrupt(format!(
                    "entry {name:?} has another name, type or shape"
                )));
            }
        }
        order.extend(names.get(name));
    }
    Ok(order)
}

fn describe(tensor: &Tensor) -> String {
    let place = match (&tensor.offset, &tensor.global_shape) {
        (Some(offset), Some(global)) => format!(" at {offset:?} of {global:?}"),
        _ => String::new(),
    };
    format!("{:?} {:?}{place}", tensor.name, tensor.shape)
}

fn tensors(plan: &Plan) -> Vec<Tensor> {
    let of = |tensor: &crate::plan::TensorPlan| Tensor {
        name: tensor.info.name.clone(),
        shape: tensor.info.shape.clone(),
        global_shape: tensor.is_shard().then(|| tensor.global_shape.clone()),
        offset: tensor.is_shard().then(|| tensor.offset.clone()),
    };
    plan.tensors.iter().map(of).collect()
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
        let name = entry_name(plan, buffer);
        let dtype = match buffer.dtype {
            Dtype::U8 => EntryDtype::U8,
            Dtype::I8 => EntryDtype::I8,
            Dtype::U16 => EntryDtype::U16,
            _ => EntryDtype::F32,
        };
        let shape = buffer.shape.iter().map(|extent| index(*extent)).collect();
        list.push(entry(name, dtype, shape, index(buffer.bytes)));
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

/// `<tensor>/<state>/<part>`.
fn entry_name(plan: &Plan, buffer: &BufferInfo) -> String {
    format!(
        "{}/{}/{}",
        plan.tensors[buffer.tensor].info.name, buffer.state, buffer.part
    )
}

fn fail(status: Status, text: String) -> Error {
    Error::new(status, format!("checkpoint: {text}"))
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::new(Status::Internal, format!("checkpoint header: {error}"))
}
