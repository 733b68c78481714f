//! A checkpoint that was opened: one file, or the shards that an index lists. Buffers of any plan for
//! the same global tensors are put together from it, whatever the mesh that wrote it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use super::gather::{Gather, Piece};
use super::header::{Header, Opened, altered};
use super::meta::kept;
use super::place::{self, Place};
use super::source::{Shard, Source};
use super::{CHUNK, Meter, Progress, fail, index, io};
use crate::error::{Error, Result, Status};
use crate::layout;
use crate::plan::{BufferInfo, Plan, TensorInfo, TensorPlan};
use crate::reserve::{list, room, zeros};
use crate::spec::Spec;

/// One file of a checkpoint.
pub(super) struct Member<'a> {
    pub(super) source: Box<dyn Source + 'a>,
    /// For messages; empty for what has no name.
    name: String,
    pub(super) opened: Opened,
    /// Of each of its buffers: position in the file's order.
    position: Vec<usize>,
}

/// A checkpoint whose headers were read and verified. The data are verified by [`Checkpoint::verify`],
/// and before they become a state.
pub struct Checkpoint<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// Names in the order of the files, each with (member, tensor) pairs.
    names: Vec<String>,
    shards: HashMap<String, Vec<(usize, usize)>>,
}

impl std::fmt::Debug for Checkpoint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<_> = self.members.iter().map(|member| &member.name).collect();
        f.debug_struct("Checkpoint")
            .field("step", &self.step())
            .field("files", &files)
            .finish_non_exhaustive()
    }
}

impl Checkpoint<'static> {
    /// Opens a checkpoint file, or an index and all files that it lists.
    ///
    /// # Errors
    /// `Io`, naming the file; `Format…` for what is not a sound checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let within = |error: Error| error.within(&path.display().to_string());
        let file = File::open(path).map_err(|error| within(io(error)))?;
        let Some((step, files)) = index::read(&file).map_err(within)? else {
            return Self::of(Box::new(file)).map_err(within);
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let open = Rc::default();
        let mut members = list(files.len()).map_err(within)?;
        for listed in &files {
            let path = folder.join(&listed.name);
            let within = |error: Error| error.within(&path.display().to_string());
            let shard = Shard::open(&open, &path).map_err(within)?;
            let member = Member::open(Box::new(shard), &listed.name).map_err(within)?;
            if member.opened.sums[0] != listed.crc32 {
                return Err(within(fail(
                    Status::FormatMismatch,
                    "is not the file that the index was made for".to_owned(),
                )));
            }
            members.push(member);
        }
        let checkpoint = Self::of_members(members).map_err(within)?;
        if checkpoint.step() != step {
            return Err(within(fail(
                Status::FormatMismatch,
                format!("an index of step {step}, of files of {}", checkpoint.step()),
            )));
        }
        checkpoint.check_complete().map_err(within)?;
        Ok(checkpoint)
    }
}

impl<'a> Checkpoint<'a> {
    /// Opens a checkpoint in one piece.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn of(source: Box<dyn Source + 'a>) -> Result<Self> {
        Self::of_members(vec![Member::open(source, "")?])
    }

    /// The files of one set: of one step and spec, with shards that agree.
    pub(super) fn of_members(members: Vec<Member<'a>>) -> Result<Self> {
        let mismatch = |text: String| fail(Status::FormatMismatch, text);
        let tensors = members
            .iter()
            .flat_map(|member| &member.opened.plan.tensors);
        room(tensors.map(|tensor| 192 + 2 * tensor.info.name.len()).sum())?;
        let mut names = Vec::new();
        let mut shards: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
        let Some(first) = members.first() else {
            return Err(mismatch("an index without files".to_owned()));
        };
        for (i, member) in members.iter().enumerate() {
            let (meta, other) = (&first.opened.meta, &member.opened.meta);
            if meta.step != other.step {
                return Err(mismatch(format!(
                    "{} is of step {}, {} of step {}",
                    first.name, meta.step, member.name, other.step
                )));
            }
            if meta.spec != other.spec {
                return Err(mismatch(format!(
                    "{} and {} have different specs",
                    first.name, member.name
                )));
            }
            for (j, tensor) in member.opened.plan.tensors.iter().enumerate() {
                let name = &tensor.info.name;
                let list = shards.entry(name.clone()).or_default();
                if let Some(&(member, tensor)) = list.first() {
                    let other = &members[member].opened.plan.tensors[tensor];
                    let same = other.global_shape == members[i].opened.plan.tensors[j].global_shape
                        && kept(other.info.weights)
                            == kept(members[i].opened.plan.tensors[j].info.weights);
                    if !same {
                        return Err(mismatch(format!(
                            "shards of {name:?} differ in global shape or weight form"
                        )));
                    }
                } else {
                    names.push(name.clone());
                }
                list.push((i, j));
            }
        }
        let checkpoint = Self {
            members,
            names,
            shards,
        };
        checkpoint.check_replicas()?;
        Ok(checkpoint)
    }

    /// Number of steps done when it was written.
    #[must_use]
    pub fn step(&self) -> i64 {
        self.members[0].opened.meta.step
    }

    /// What its states are.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.members[0].opened.meta.spec
    }

    /// How many files it has.
    #[must_use]
    pub fn files(&self) -> usize {
        self.members.len()
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |member: &Member<'_>| member.opened.header.file_bytes();
        self.members.iter().map(bytes).sum()
    }

    /// The global tensors, in the order of the files.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let names = self.names.iter();
        names.filter_map(|name| self.whole(name)).collect()
    }

    /// A global tensor.
    pub(super) fn whole(&self, name: &str) -> Option<TensorInfo> {
        let &(member, tensor) = self.shards.get(name)?.first()?;
        let tensor = &self.members[member].opened.plan.tensors[tensor];
        Some(TensorInfo {
            shape: tensor.global_shape.clone(),
            global_shape: None,
            offset: None,
            ..tensor.info.clone()
        })
    }

    /// The boxes of a tensor that the files have, as (offset, shape).
    #[must_use]
    pub fn places(&self, name: &str) -> Vec<(Vec<i64>, Vec<i64>)> {
        let shards = self.shards.get(name).into_iter().flatten();
        shards
            .map(|&(member, tensor)| &self.members[member].opened.plan.tensors[tensor])
            .map(|tensor| (tensor.offset.clone(), tensor.info.shape.clone()))
            .collect()
    }

    /// Step, spec, and the global tensors with the places of their shards, as JSON.
    ///
    /// # Errors
    /// None in practice; serialization is fallible in type only.
    pub fn to_json(&self) -> Result<String> {
        let tensors: Vec<_> = self
            .tensors()
            .iter()
            .map(|info| {
                let places = self.places(&info.name);
                let places = places
                    .iter()
                    .map(|(offset, shape)| serde_json::json!({"offset": offset, "shape": shape}));
                serde_json::json!({
                    "name": info.name,
                    "shape": info.shape,
                    "weights": kept(info.weights),
                    "shards": places.collect::<Vec<_>>(),
                })
            })
            .collect();
        let all = serde_json::json!({
            "step": self.step(),
            "spec": self.spec(),
            "tensors": tensors,
        });
        serde_json::to_string(&all).map_err(|error| Error::new(Status::Internal, error.to_string()))
    }

    /// A plan, on the CPU, of tensors of this checkpoint.
    ///
    /// # Errors
    /// As for [`Plan::new`].
    pub fn plan(&self, tensors: Vec<TensorInfo>) -> Result<Plan> {
        Plan::new(super::meta::host()?, self.spec(), tensors)
    }

    /// Compares the checksums of everything.
    ///
    /// # Errors
    /// `FormatCorrupt` naming the entry; `Io`; `Cancelled` by `progress`.
    pub fn verify(&self, progress: Option<Progress<'_>>) -> Result<()> {
        let data = |member: &Member<'_>| {
            let header = &member.opened.header;
            header.sums_at - header.bytes.len() as u64
        };
        let mut meter = Meter::new(progress, self.members.iter().map(data).sum());
        for member in &self.members {
            for buffer in 0..member.opened.plan.buffers.len() {
                member.verify(buffer, &mut meter)?;
            }
        }
        Ok(())
    }

    /// Some shard of a tensor that is there.
    fn tensor(&self, name: &str) -> &TensorPlan {
        let (member, tensor) = self.shards[name][0];
        &self.members[member].opened.plan.tensors[tensor]
    }

    /// Whether the states of `plan` can be taken from here: the same spec and, unless `subset`, the
    /// same tensors.
    fn check(&self, plan: &Plan, subset: bool) -> Result<()> {
        let mismatch = |text: String| fail(Status::FormatMismatch, text);
        if *self.spec() != plan.spec {
            return Err(mismatch(format!(
                "written under the spec {}, the plan has {}",
                self.spec().to_json()?,
                plan.spec.to_json()?
            )));
        }
        for want in &plan.tensors {
            let name = &want.info.name;
            if !self.shards.contains_key(name) {
                return Err(mismatch(format!(
                    "the file lacks {name:?} {:?}",
                    want.global_shape
                )));
            }
            let got = self.tensor(name);
            if got.global_shape != want.global_shape {
                return Err(mismatch(format!(
                    "the file has {name:?} {:?}, the plan {name:?} {:?}",
                    got.global_shape, want.global_shape
                )));
            }
            if kept(got.info.weights) != kept(want.info.weights) {
                return Err(mismatch(format!(
                    "{name:?} has weights {} in the file, {} in the plan",
                    got.info.weights.name(),
                    want.info.weights.name()
                )));
            }
        }
        if !subset && self.names.len() != plan.tensors.len() {
            return Err(mismatch(format!(
                "the file has {} tensors, the plan {}",
                self.names.len(),
                plan.tensors.len()
            )));
        }
        Ok(())
    }

    /// Which buffers of which files the states of `plan` are put together from, in the order of the files.
    /// `subset`: there may be further tensors here.
    ///
    /// # Errors
    /// `FormatMismatch` for a plan of another model or spec, and where a part is in no file.
    pub(super) fn sources(&self, plan: &Plan, subset: bool) -> Result<Sources> {
        self.check(plan, subset)?;
        let buffers = |member: &Member<'_>| member.opened.plan.buffers.len();
        let mut used = list(self.members.len())?;
        for member in &self.members {
            used.push(zeros(buffers(member))?);
        }
        for info in &plan.buffers {
            for piece in self.gather(plan, info)?.pieces() {
                used[piece.member][piece.buffer] = true;
            }
        }
        Ok(Sources(used))
    }

    /// Of which pieces buffer `info` of `plan` is put together.
    ///
    /// # Errors
    /// `FormatMismatch` where a part of it is in no file.
    pub(super) fn gather(&self, plan: &Plan, info: &BufferInfo) -> Result<Gather<'_>> {
        let element = info.dtype.size() as i64;
        self.room_for_places(plan, info)?;
        let target = place::of(plan, info);
        let mut pieces = Vec::new();
        let mut missing = if target.is_empty() {
            Vec::new()
        } else {
            vec![target.clone()]
        };
        for (member, buffer) in self.buffers(plan, info) {
            if missing.is_empty() {
                break;
            }
            let from = &self.members[member];
            let source = place::of(&from.opened.plan, &from.opened.plan.buffers[buffer]);
            let mut left = Vec::new();
            for open in missing {
                let Some(shared) = open.intersection(&source) else {
                    left.push(open);
                    continue;
                };
                left.extend(open.without(&shared));
                pieces.push(Piece {
                    member,
                    buffer,
                    source: source.clone().in_bytes(element),
                    shared: shared.in_bytes(element),
                });
            }
            missing = left;
        }
        if let Some(hole) = missing.first() {
            return Err(fail(
                Status::FormatMismatch,
                format!(
                    "{}: the part {:?} at {:?} is in no file",
                    plan.entry_name(info),
                    hole.shape,
                    hole.offset
                ),
            ));
        }
        Ok(Gather::new(self, target.in_bytes(element), pieces))
    }

    /// Room for what is noted of each shard's part of buffer `info` of `plan`.
    fn room_for_places(&self, plan: &Plan, info: &BufferInfo) -> Result<()> {
        let tensor = &plan.tensors[info.tensor].info;
        let shards = self.shards.get(&tensor.name).map_or(0, Vec::len);
        room(shards * (1024 + 256 * tensor.shape.len()))
    }

    /// The buffers of all shards that are parts of the same as buffer `info` of `plan`.
    fn buffers<'b>(
        &'b self,
        plan: &'b Plan,
        info: &'b BufferInfo,
    ) -> impl Iterator<Item = (usize, usize)> + 'b {
        let shards = self.shards.get(&plan.tensors[info.tensor].info.name);
        shards
            .into_iter()
            .flatten()
            .filter_map(|&(member, tensor)| {
                let other = &self.members[member].opened.plan;
                let tensor = &other.tensors[tensor];
                tensor
                    .buffers()
                    .find(|&i| {
                        other.buffers[i].state == info.state && other.buffers[i].part == info.part
                    })
                    .map(|buffer| (member, buffer))
            })
    }

    /// Shards that have the same part of a tensor must have the same bytes there.
    fn check_replicas(&self) -> Result<()> {
        if self.members.len() < 2 {
            return Ok(());
        }
        for name in &self.names {
            let (member, tensor) = self.shards[name][0];
            let plan = &self.members[member].opened.plan;
            for info in &plan.buffers[plan.tensors[tensor].buffers()] {
                self.check_replicas_of(plan, info)?;
            }
        }
        Ok(())
    }

    fn check_replicas_of(&self, plan: &Plan, info: &BufferInfo) -> Result<()> {
        self.room_for_places(plan, info)?;
        let mut boxes: HashMap<Place, (usize, usize)> = HashMap::new();
        let disagree = || {
            let text = format!("{}: shards disagree", plan.entry_name(info));
            Err(fail(Status::FormatMismatch, text))
        };
        for (member, buffer) in self.buffers(plan, info) {
            let from = &self.members[member];
            let place = place::of(&from.opened.plan, &from.opened.plan.buffers[buffer]);
            if place.is_empty() {
                continue;
            }
            if let Some(&(other, same)) = boxes.get(&place) {
                if self.members[other].sum(same) != from.sum(buffer) {
                    return disagree();
                }
                continue;
            }
            // Vectors of maxima may overlap in part.
            for (other, &(there, same)) in &boxes {
                if let Some(shared) = other.intersection(&place) {
                    let here = (place.clone(), member, buffer);
                    let there = (other.clone(), there, same);
                    if !self.agree(info, shared, [here, there])? {
                        return disagree();
                    }
                }
            }
            boxes.insert(place, (member, buffer));
        }
        Ok(())
    }

    /// Whether two files have the same bytes of a box that both have.
    fn agree(
        &self,
        info: &BufferInfo,
        shared: Place,
        sides: [(Place, usize, usize); 2],
    ) -> Result<bool> {
        let element = info.dtype.size() as i64;
        let shared = shared.in_bytes(element);
        let bytes = layout::index(shared.shape.iter().product());
        let [mut one, mut other] = sides.map(|(place, member, buffer)| {
            let piece = Piece {
                member,
                buffer,
                source: place.in_bytes(element),
                shared: shared.clone(),
            };
            Gather::new(self, shared.clone(), vec![piece])
        });
        let (mut a, mut b) = (zeros(CHUNK.min(bytes))?, zeros(CHUNK.min(bytes))?);
        for at in (0..bytes).step_by(CHUNK) {
            let part = CHUNK.min(bytes - at);
            one.fill(&mut a[..part])?;
            other.fill(&mut b[..part])?;
            if a[..part] != b[..part] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every element of every tensor is in some file.
    pub(super) fn check_complete(&self) -> Result<()> {
        let plan = self.plan(self.tensors())?;
        for info in &plan.buffers {
            self.gather(&plan, info)?;
        }
        Ok(())
    }

    /// Verifies these buffers.
    pub(super) fn verify_sources(&self, sources: &Sources, meter: &mut Meter<'_>) -> Result<()> {
        for (member, buffer) in sources.iter() {
            self.members[member].verify(buffer, meter)?;
        }
        Ok(())
    }

    /// Bytes of these buffers.
    pub(super) fn source_bytes(&self, sources: &Sources) -> u64 {
        let bytes = |(member, buffer): (usize, usize)| {
            let plan = &self.members[member].opened.plan;
            layout::index(plan.buffers[buffer].bytes) as u64
        };
        sources.iter().map(bytes).sum()
    }
}

/// Some buffers of the files of a checkpoint: for each file, which of its buffers.
pub(super) struct Sources(Vec<Vec<bool>>);

impl Sources {
    /// Pairs of file and buffer.
    fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let files = self.0.iter().enumerate();
        files.flat_map(|(file, used)| {
            let buffers = used.iter().enumerate().filter(|(_, used)| **used);
            buffers.map(move |(buffer, _)| (file, buffer))
        })
    }
}

impl<'a> Member<'a> {
    pub(super) fn open(source: Box<dyn Source + 'a>, name: &str) -> Result<Self> {
        let opened = Header::read(source.as_ref())?;
        let mut position = zeros(opened.header.entries.len())?;
        for (at, (buffer, _)) in opened.header.entries.iter().enumerate() {
            position[*buffer] = at;
        }
        Ok(Self {
            source,
            name: name.to_owned(),
            opened,
            position,
        })
    }

    /// First byte of a buffer in the file.
    pub(super) fn start(&self, buffer: usize) -> u64 {
        self.opened.header.entries[self.position[buffer]].1
    }

    /// Stored checksum of a buffer.
    pub(super) fn sum(&self, buffer: usize) -> u32 {
        self.opened.sums[1 + self.position[buffer]]
    }

    /// Compares the checksum of one entry.
    fn verify(&self, buffer: usize, meter: &mut Meter<'_>) -> Result<()> {
        let info = &self.opened.plan.buffers[buffer];
        let (start, bytes) = (self.start(buffer), layout::index(info.bytes));
        let mut chunk = zeros(CHUNK.min(bytes))?;
        let mut hasher = crc32fast::Hasher::new();
        for at in (0..bytes).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(bytes - at)];
            self.source.read_at(start + at as u64, chunk)?;
            hasher.update(chunk);
            meter.add(chunk.len())?;
        }
        self.compare(buffer, hasher.finalize())
    }

    /// Whether `found` is the stored checksum.
    pub(super) fn compare(&self, buffer: usize, found: u32) -> Result<()> {
        if found == self.sum(buffer) {
            return Ok(());
        }
        let plan = &self.opened.plan;
        Err(altered(&plan.entry_name(&plan.buffers[buffer])))
    }
}
