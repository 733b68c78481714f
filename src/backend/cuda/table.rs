//! What a plan prepares: which kernel each tensor gets, and the table in device memory that tells
//! the kernels everything that stays the same from step to step. Pure functions: the tests run the
//! same lists on the host (`emulation.rs`).

use std::sync::Arc;

use super::kernels::{self, FactoredKernels, Kernel, THREADS};
use super::params::{
    self, APPLY, CODES, COLLECT, COVER, Codebook, FACTORS, LAUNCH_WORDS, MAX_STATES, PER_AXES,
    PER_BLOCK, PER_COLUMN, PER_ROW, PER_TENSOR, Plain, SCALARS_WORDS, SCALE_CORRECTION, STATES,
    SUBTRACTIVE_DITHER, Segment, State, Tensor, VALUES,
};
use crate::error::{Error, Result, Status, unsupported};
use crate::layout::{Projection, div_ceil};
use crate::plan::{Codes, Factor, Format, MAX_AXES, Scales, StatePlan, TensorPlan};
use crate::quant;
use crate::spec::{Normalization, Optimizer, Spec};

/// Warps of a thread block.
const WARPS: i64 = THREADS as i64 / 32;

/// Elements of a task, but at least a unit for every warp (`units_per_task` in tasks.cuh).
const TASK_ELEMENTS: i64 = 8192;

/// Most and fewest rows of a task of the fused kernels: a lane has what belongs to one of 32.
const TILE_ROWS: i64 = 8 * LEAST_TILE_ROWS;
const LEAST_TILE_ROWS: i64 = 32;

/// Rows and columns of a warp's part of a tile, and how many tiles make them taller (`WARP_ROWS` and
/// `TALL_TILES` in tiles.cuh, `CHUNK` in wide.cuh).
const WARP_ROWS: i64 = 32;
const TALL_TILES: i64 = if cfg!(test) { 3 } else { 512 };
const WARP_COLUMNS: i64 = 128;

/// Means of a task of the kernels that make new ones (`REFRESHED` in factored.cuh).
const REFRESHED: i64 = 4 * THREADS as i64;

/// Words of a task of the kernel that brings them into the states (`FINISHED` in finish.cu).
const FINISHED: i64 = 8 * THREADS as i64;

/// Elements that are collected before they are applied: two groups of gradients and codes fit the L2
/// cache of the devices that this is for, and keep all of their multiprocessors busy.
const GROUP_ELEMENTS: i64 = 1 << 22;

/// One launch: some of the plan's tensors, in the plan's order.
#[derive(Debug)]
pub(super) struct List {
    pub(super) kernel: Kernel,
    /// Thread blocks.
    pub(super) grid: u32,
    /// Offsets in the table.
    pub(super) tensors: i64,
    pub(super) segments: i64,
    pub(super) tasks: i64,
    /// Index in the plan and first word of the pointers of each tensor.
    pub(super) members: Vec<(usize, usize)>,
    /// Group and first word of its scalars.
    pub(super) groups: Vec<(usize, usize)>,
}

/// The launches of a plan.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Statistics of tensors that need them as a whole.
    pub(super) collect_global: Vec<List>,
    /// Non-finite flags of all others, for the policies that want them.
    pub(super) collect_rest: Vec<List>,
    /// Sums of factored tensors, and the new means that follow from them.
    pub(super) sums: Vec<List>,
    pub(super) refresh: Vec<List>,
    /// Adafactor's statistics of its updates.
    pub(super) update_maxima: Vec<List>,
    pub(super) update_sums: Vec<List>,
    pub(super) apply: Vec<List>,
    /// The same two for tensors whose kernel can do both in one launch, and those launches.
    pub(super) collect_fusible: Vec<List>,
    pub(super) apply_fusible: Vec<List>,
    pub(super) fused: Vec<List>,
    /// Brings maxima into the states.
    pub(super) finish: Vec<List>,
    pub(super) clear_maxima: Vec<List>,
    pub(super) raise_maxima: Vec<List>,
    pub(super) compress: Vec<List>,
    /// Means of values, of tensors that keep a state as factors.
    pub(super) compress_means: Vec<List>,
    pub(super) decompress: Vec<List>,
    pub(super) norm_max: Vec<List>,
    pub(super) norm_sum: Vec<List>,
    /// Tensors of the longest launch that a step may place elsewhere.
    pub(super) placed: usize,
}

impl Lists {
    /// Bytes of the scratch behind the statistics: tickets, and of plans with shards the tensors of
    /// a launch at other places.
    pub(super) fn scratch_bytes(&self, tensors: usize) -> usize {
        4 * self.ticket_words(tensors) + size_of::<Tensor>() * self.placed
    }

    /// i32 words of the scratch behind the statistics: how many tasks of each tensor have collected,
    /// and the next task of each fused launch.
    pub(super) fn ticket_words(&self, tensors: usize) -> usize {
        if self.fused.is_empty() {
            0
        } else {
            (tensors + self.fused.len()).next_multiple_of(2)
        }
    }
}

/// The table's bytes, and the launches that use it.
pub(super) fn build(
    spec: &Spec,
    tensors: &[TensorPlan],
    resident: &dyn Fn(Kernel) -> Result<u32>,
) -> Result<(Vec<u8>, Lists)> {
    let kernels = match spec.optimizer {
        Optimizer::None => None,
        optimizer => Some(Kernel::any(optimizer).ok_or_else(|| {
            let name = optimizer.name();
            unsupported(format!("this version has no CUDA kernels for {name}"))
        })?),
    };
    let factored = factored_kernels(spec, tensors)?;
    let mut builder = Builder {
        tensors,
        bytes: Vec::new(),
        codebooks: Vec::new(),
        longest: 0,
        resident,
    };
    let mut lists = Lists::default();
    if let Some([any, collect]) = kernels {
        let kernel_of = |tensor: &TensorPlan| {
            let any = match factored {
                Some(kernels) if tensor.factored().is_some() => kernels.step,
                _ => any,
            };
            Kernel::of(spec, tensor, any)
        };
        let chosen: Vec<_> = tensors.iter().map(kernel_of).collect();
        let of = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..tensors.len()).filter(|i| wanted(*i)).collect()
        };
        let global = |i: usize| tensors[i].needs_statistics();
        let unfused = of(&|i| global(i) && !chosen[i].is_fused() && !has_sums(&tensors[i]));
        lists.collect_global = builder.lists(collect, &unfused, &[COLLECT])?;
        if let Some(kernels) = factored {
            let members = of(&|i| has_sums(&tensors[i]));
            let collect = builder.lists(kernels.collect, &members, &[COLLECT])?;
            lists.collect_global.extend(collect);
            lists.sums = builder.lists(kernels.sum, &members, &[COLLECT])?;
            let members = of(&|i| tensors[i].factored().is_some());
            lists.refresh = builder.lists(kernels.refresh, &members, &[COLLECT])?;
        }
        if spec.optimizer == Optimizer::Adafactor
            && spec.adafactor.unwrap_or_default().clip_threshold > 0.0
        {
            let all = of(&|_| true);
            lists.update_maxima = builder.lists(kernels::UPDATE_MAXIMA, &all, &[COLLECT])?;
            lists.update_sums = builder.lists(kernels::UPDATE_SUMS, &all, &[COLLECT])?;
        }
        lists.collect_rest = builder.lists(collect, &of(&|i| !global(i)), &[COLLECT])?;
        lists.finish = builder.lists(kernels::FINISH, &of(&global), &[APPLY])?;
        for kernel in kernels::steps() {
            let members = of(&|i| chosen[i] == kernel);
            let apply = builder.lists(kernel, &members, &[APPLY])?;
            if kernel.is_fused() {
                lists.apply_fusible.extend(apply);
                let collect = builder.lists(kernel, &members, &[COLLECT])?;
                lists.collect_fusible.extend(collect);
                let fused = builder.lists(kernel, &members, &[COLLECT, APPLY])?;
                lists.fused.extend(fused);
            } else {
                lists.apply.extend(apply);
            }
        }
    }
    let all: Vec<_> = (0..tensors.len()).collect();
    for (list, kernel) in [
        (&mut lists.clear_maxima, kernels::CLEAR_MAXIMA),
        (&mut lists.raise_maxima, kernels::RAISE_MAXIMA),
        (&mut lists.compress, kernels::COMPRESS),
        (&mut lists.decompress, kernels::DECOMPRESS),
        (&mut lists.norm_max, kernels::NORM_MAX),
        (&mut lists.norm_sum, kernels::NORM_SUM),
    ] {
        *list = builder.lists(kernel, &all, &[APPLY])?;
    }
    let of_factors = all.into_iter().filter(|i| tensors[*i].factored().is_some());
    let members: Vec<_> = of_factors.collect();
    lists.compress_means = builder.lists(kernels::COMPRESS_MEANS, &members, &[APPLY])?;
    if tensors.iter().any(TensorPlan::is_shard) {
        resident(kernels::PLACE)?;
        lists.placed = builder.longest;
    }
    Ok((builder.bytes, lists))
}

/// Whether a tensor's statistics include exact sums.
fn has_sums(tensor: &TensorPlan) -> bool {
    tensor.factored().is_some() || tensor.rms.is_some()
}

/// The kernels for tensors with exact sums, if there are any such tensors.
fn factored_kernels(spec: &Spec, tensors: &[TensorPlan]) -> Result<Option<FactoredKernels>> {
    let Some(tensor) = tensors.iter().find(|tensor| has_sums(tensor)) else {
        return Ok(None);
    };
    let kernels = FactoredKernels::of(spec.optimizer).ok_or_else(|| {
        unsupported(format!(
            "tensor {:?} has a state kept as factors, for which this version has no CUDA kernels of {}",
            tensor.info.name,
            spec.optimizer.name()
        ))
    })?;
    Ok(Some(kernels))
}

struct Builder<'a> {
    tensors: &'a [TensorPlan],
    bytes: Vec<u8>,
    /// With their offsets; equal ones are shared.
    codebooks: Vec<(Arc<quant::Table>, i64)>,
    /// Tensors of the longest list.
    longest: usize,
    resident: &'a dyn Fn(Kernel) -> Result<u32>,
}

impl Builder<'_> {
    /// As few launches for `members` as the words of one allow.
    fn lists(&mut self, kernel: Kernel, members: &[usize], kinds: &[i32]) -> Result<Vec<List>> {
        let mut lists = Vec::new();
        let mut rest = members;
        while !rest.is_empty() {
            let (mut taken, mut words) = (Vec::new(), 0);
            let mut groups: Vec<(usize, usize)> = Vec::new();
            for &i in rest {
                let tensor = &self.tensors[i];
                let group = tensor.info.group;
                let known = groups.iter().any(|(known, _)| *known == group);
                let scalars = if known { 0 } else { SCALARS_WORDS };
                let pointers = STATES + tensor.buffer_count;
                if words + scalars + pointers > LAUNCH_WORDS {
                    break;
                }
                if !known {
                    groups.push((group, words));
                }
                taken.push((i, words + scalars));
                words += scalars + pointers;
            }
            rest = &rest[taken.len()..];
            lists.push(self.list(kernel, taken, groups, kinds)?);
        }
        Ok(lists)
    }

    fn list(
        &mut self,
        kernel: Kernel,
        members: Vec<(usize, usize)>,
        groups: Vec<(usize, usize)>,
        kinds: &[i32],
    ) -> Result<List> {
        self.longest = self.longest.max(members.len());
        let resident = i64::from((self.resident)(kernel)?).max(1);
        let mut entries = Vec::with_capacity(members.len());
        for &(i, words) in &members {
            let group = self.tensors[i].info.group;
            let scalars = groups.iter().find(|(known, _)| *known == group);
            let scalars = scalars.map_or(0, |(_, word)| *word);
            entries.push(self.entry(kernel, i, words, scalars, resident)?);
        }
        let mut segments = Vec::new();
        let mut tasks = 0;
        for (number, kind) in self.order(&members, kinds) {
            segments.push(Segment {
                first: tasks,
                tensor: narrow(number)?,
                kind,
            });
            tasks += kernel.tasks(&self.tensors[members[number].0], resident);
        }
        segments.push(Segment {
            first: tasks,
            tensor: -1,
            kind: -1,
        });
        let grid =
            u32::try_from(tasks.min(resident)).map_err(|_| internal("a grid is too large"))?;
        Ok(List {
            kernel,
            grid,
            tensors: self.append(&entries),
            segments: self.append(&segments),
            tasks,
            members,
            groups,
        })
    }

    /// Which members come in which order, and what is done for them. What is collected shall still be
    /// in the L2 cache when it is applied, but the last collecting tasks shall have ended: groups of
    /// some million elements are collected one ahead of being applied.
    fn order(&self, members: &[(usize, usize)], kinds: &[i32]) -> Vec<(usize, i32)> {
        let &[first, second] = kinds else {
            let all = 0..members.len();
            return all
                .flat_map(|i| kinds.iter().map(move |kind| (i, *kind)))
                .collect();
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut elements = GROUP_ELEMENTS;
        for (number, &(i, _)) in members.iter().enumerate() {
            if elements >= GROUP_ELEMENTS {
                groups.push(Vec::new());
                elements = 0;
            }
            elements += self.tensors[i].numel;
            if let Some(group) = groups.last_mut() {
                group.push(number);
            }
        }
        let mut order = Vec::new();
        for i in 0..=groups.len() {
            if let Some(group) = groups.get(i) {
                order.extend(group.iter().map(|number| (*number, first)));
            }
            if let Some(group) = i.checked_sub(1).and_then(|i| groups.get(i)) {
                order.extend(group.iter().rev().map(|number| (*number, second)));
            }
        }
        order
    }

    fn entry(
        &mut self,
        kernel: Kernel,
        i: usize,
        words: usize,
        scalars: usize,
        resident: i64,
    ) -> Result<Tensor> {
        let tensor = &self.tensors[i];
        let grid = &tensor.grid;
        let mut state = [State::default(); MAX_STATES];
        for (slot, plan) in state.iter_mut().zip(&tensor.states) {
            *slot = self.state(tensor, plan)?;
        }
        let (rows, cols) = if kernel.merges_rows() && grid.cols % grid.block == 0 {
            (1, grid.rows * grid.cols)
        } else {
            (grid.rows, grid.cols)
        };
        let (first_row, first_col) = grid.first(&tensor.offset);
        Ok(Tensor {
            rows,
            cols,
            units: div_ceil(cols, grid.block),
            first_col,
            param_max: tensor.rms.map_or(0, |rms| rms.param_max as i64),
            param_sum: tensor.rms.map_or(0, |rms| rms.param_sum as i64),
            update_max: tensor.rms.map_or(0, |rms| rms.update_max as i64),
            update_sum: tensor.rms.map_or(0, |rms| rms.update_sum as i64),
            block: narrow(grid.block)?,
            param_dtype: tensor.info.param_dtype as i32,
            grad_dtype: tensor.info.grad_dtype as i32,
            weights: tensor.info.weights as i32,
            group: narrow(tensor.info.group)?,
            scalars: narrow(scalars)?,
            index: narrow(i)?,
            global: i32::from(tensor.needs_statistics()),
            states: narrow(tensor.states.len())?,
            axes: narrow(tensor.info.shape.len())?,
            lead: narrow(grid.lead.len())?,
            hash: tensor.hash,
            words: narrow(words)?,
            first_row: first_row as u32,
            tile_rows: narrow(tile_rows(tensor, resident))?,
            reserved: 0,
            shape: axes(&tensor.info.shape),
            offset: axes(&tensor.offset),
            global_shape: axes(&tensor.global_shape),
            state,
        })
    }

    fn state(&mut self, tensor: &TensorPlan, plan: &StatePlan) -> Result<State> {
        let mut state = State {
            kind: VALUES,
            buffer: narrow(STATES + plan.first_buffer)?,
            ..State::default()
        };
        if let Format::Factored(factors) = &plan.format {
            state.kind = FACTORS;
            let factors = factors.each_ref().map(factor);
            state.codebook = self.append(&factors);
        }
        if let Format::Codes(codes) = &plan.format {
            state.kind = CODES;
            state.per_byte = narrow(codes.per_byte)?;
            state.rounding = codes.rounding as i32;
            state.option = match codes.dither {
                Some(_) => SUBTRACTIVE_DITHER,
                None if codes.scale_correction => SCALE_CORRECTION,
                None => 0,
            };
            state.spacing = codes.dither.unwrap_or_default();
            state.codebook = self.codebook(codes);
            (state.scaling, state.block) = match &codes.scales {
                Scales::Block(block) => (PER_BLOCK, narrow(*block)?),
                Scales::Maxima(_) => (scaling(plan)?, 1),
            };
        }
        if let Format::Cover(_) = &plan.format {
            state.kind = COVER;
            // A scalar has one maximum.
            let scalar = tensor.info.shape.is_empty();
            state.scaling = if scalar { PER_TENSOR } else { PER_AXES };
        }
        // The maxima of the axes follow each other.
        let mut word = plan.maxima().first().map_or(0, |maxima| maxima.word);
        state.word = word as i64;
        for maxima in plan.maxima() {
            if maxima.word != word {
                return Err(internal(&format!("statistics of {}", tensor.info.name)));
            }
            word += crate::layout::index(maxima.projection.global_len);
        }
        Ok(state)
    }

    fn codebook(&mut self, codes: &Codes) -> i64 {
        let known = self
            .codebooks
            .iter()
            .find(|(table, _)| *table == codes.table);
        if let Some((_, offset)) = known {
            return *offset;
        }
        let offset = self.append(&[codebook(&codes.table)]);
        self.codebooks.push((Arc::clone(&codes.table), offset));
        offset
    }

    /// Adds items to the table; all have sizes that are multiples of 8.
    fn append<T: Plain>(&mut self, items: &[T]) -> i64 {
        let offset = self.bytes.len() as i64;
        // SAFETY: the items are bytes without padding.
        let bytes = unsafe {
            std::slice::from_raw_parts(items.as_ptr().cast::<u8>(), std::mem::size_of_val(items))
        };
        self.bytes.extend_from_slice(bytes);
        offset
    }
}

/// A factor as the kernels read it.
fn factor(factor: &Factor) -> params::Factor {
    let axes = factor.maxima.projection.axes().iter();
    params::Factor {
        word: factor.maxima.word as i64,
        sum: factor.sum as i64,
        fresh: factor.fresh as i64,
        count: factor.count,
        axes: axes.map(|axis| 1 << axis).sum(),
        reserved: 0,
    }
}

/// A table as the kernels read it.
pub(super) fn codebook(table: &quant::Table) -> Codebook {
    let mut book = Codebook {
        by_code: table.by_code,
        midpoints: [f32::INFINITY; 256],
        levels: table.levels.len() as i32,
        reserved: 0,
    };
    book.midpoints[..table.midpoints.len()].copy_from_slice(&table.midpoints);
    book
}

/// Tasks of the fused kernels on a tensor, of so many rows each (`Tiles` in adamw_rank1.cuh).
fn tiles(tensor: &TensorPlan, rows: i64) -> i64 {
    let units = tensor.grid.blocks;
    // As many blocks side by side as there are warps, or the power of two below.
    let group = WARPS.min(power_below(units));
    div_ceil(units, group) * div_ceil(tensor.grid.rows, rows)
}

/// Rows of such a task: as many as leave the tensor a task for each thread block that is resident, or
/// for the power of two below.
fn tile_rows(tensor: &TensorPlan, resident: i64) -> i64 {
    let mut rows = TILE_ROWS;
    while rows > LEAST_TILE_ROWS && tiles(tensor, rows) < power_below(resident) {
        rows /= 2;
    }
    rows
}

/// The largest power of two that is not above `x`, or 1.
fn power_below(x: i64) -> i64 {
    1 << (63 - x.max(1).leading_zeros())
}

impl Kernel {
    /// Tasks of one tensor: at least one, which counts it if it is skipped.
    fn tasks(self, tensor: &TensorPlan, resident: i64) -> i64 {
        if self == kernels::CLEAR_MAXIMA {
            return 1;
        }
        let factors = tensor.factored().map_or(&[][..], |(_, factors)| factors);
        let projections = factors.iter().map(|factor| &factor.maxima.projection);
        if self.refreshes() {
            let extents = projections.map(Projection::extent);
            return div_ceil(extents.sum(), REFRESHED).max(1);
        }
        if self == kernels::FINISH {
            let maxima = tensor.states.iter().flat_map(StatePlan::maxima);
            let extents = maxima.map(|each| each.projection.extent());
            let largest = extents.chain(projections.map(Projection::extent)).max();
            return div_ceil(largest.unwrap_or(0), FINISHED).max(1);
        }
        if self == kernels::COMPRESS_MEANS {
            // As `means_of_task` in codec.cu.
            let width = |projection: &Projection| if projection.varies() { 32 } else { 1 };
            let tasks = projections.map(|each| div_ceil(each.extent(), width(each)));
            return tasks.sum::<i64>().max(1);
        }
        if self.is_fused() {
            return tiles(tensor, tile_rows(tensor, resident)).max(1);
        }
        if self.takes_tiles() {
            // As `Tiling` in tiles.cuh.
            let parts = div_ceil(tensor.grid.rows, WARP_ROWS);
            let down = WARPS.min(power_below(parts));
            let across = div_ceil(tensor.grid.cols, WARP_COLUMNS * (WARPS / down));
            let tiles = across * div_ceil(parts, down);
            let fills =
                |times: i64| parts >= times * WARPS && tiles >= times * times / 4 * TALL_TILES;
            let height = [4, 2].into_iter().find(|times| fills(*times)).unwrap_or(1);
            return (across * div_ceil(tensor.grid.rows, down * height * WARP_ROWS)).max(1);
        }
        let each = (TASK_ELEMENTS / tensor.grid.block).max(WARPS);
        div_ceil(tensor.grid.units(), each).max(1)
    }
}

fn scaling(plan: &StatePlan) -> Result<i32> {
    match plan.quantizer.normalization {
        Some(Normalization::Tensor) => Ok(PER_TENSOR),
        Some(Normalization::Row) => Ok(PER_ROW),
        Some(Normalization::Column) => Ok(PER_COLUMN),
        Some(Normalization::Rank1) => Ok(PER_AXES),
        _ => Err(internal("maxima without a normalization that has them")),
    }
}

fn axes(extents: &[i64]) -> [i64; MAX_AXES] {
    let mut all = [0; MAX_AXES];
    all[..extents.len()].copy_from_slice(extents);
    all
}

/// A count that kernels have as 32 bits.
fn narrow<T: TryInto<i32>>(count: T) -> Result<i32> {
    count
        .try_into()
        .map_err(|_| unsupported("the plan has more tensors than CUDA kernels can count"))
}

fn internal(what: &str) -> Error {
    Error::new(Status::Internal, what)
}
