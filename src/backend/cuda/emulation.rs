//! The kernels on the host, bit for bit against the reference.
//!
//! `tests/cuda/shim.hpp` lets the `.cu` files compile as C++ with g++. The tables, launches and
//! parameters are those that the device would get; the buffers lie between unmapped pages.

use std::ffi::{CStr, CString, c_void};
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use super::kernels::{FORMS, KERNELS, THREADS};
use super::launch::{self, Direction, Work};
use super::params::{Codebook, Factor, Launch, Scalars, Segment, State, Tensor};
use super::table::{self, Lists};
use crate::backend::{Call, Codec, Context, CpuContext, Variant};
use crate::codec::EmaArgs;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::layout::div_ceil;
use crate::norm::{self, NormArgs};
use crate::numerics::{self, Hyper};
use crate::plan::{Pass, Plan, TensorInfo, TensorPlan};
use crate::quant::{self, Mapping, Preconditioner, Rounding, Table};
use crate::spec::{
    AdafactorOptions, FactorAxes, Normalization, Optimizer, Quantizer, SgdmOptions, Spec,
};
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};
use crate::weights::Weights;

// ---- the shim ----------------------------------------------------------------------------------

type KernelFn = unsafe extern "C" fn(*const Launch);

struct Shim {
    launch: unsafe extern "C" fn(KernelFn, u32, u32, *const Launch, u64),
    codes: unsafe extern "C" fn(*const CodesParams),
    byte_codes: unsafe extern "C" fn(*const ByteCodesParams),
    drawn_codes: unsafe extern "C" fn(*const DrawnCodesParams),
    own_scales: unsafe extern "C" fn(*const OwnScalesParams),
    wrong_roots: unsafe extern "C" fn() -> usize,
    wrong_quotients: unsafe extern "C" fn(usize) -> usize,
    wrong_limbs: unsafe extern "C" fn(usize) -> usize,
    wrong_warp_sums: unsafe extern "C" fn() -> usize,
    layout: *const usize,
    kernels: Vec<KernelFn>,
}

// SAFETY: functions and constants of a library that stays loaded; its state is per thread.
unsafe impl Send for Shim {}
// SAFETY: as above.
unsafe impl Sync for Shim {}

static SHIM: LazyLock<Shim> = LazyLock::new(Shim::build);

impl Shim {
    fn build() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        let mut sources: Vec<_> = std::fs::read_dir(root.join("cuda"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|found| found == "cu"))
            .collect();
        sources.push(root.join("tests/cuda/parts.cpp"));
        // Those of sgdm and lion take longest.
        sources.sort_unstable_by(|a, b| b.cmp(a));
        let object = |source: &Path| {
            let name = source.file_stem().unwrap();
            dir.path().join(name).with_extension("o")
        };
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                compile(root, source, &object(source));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().unwrap().get() {
                scope.spawn(work);
            }
        });
        let library = dir.path().join("libkernels.so");
        let mut linker = Command::new("g++");
        linker.arg("-shared").arg("-o").arg(&library);
        let linked = linker
            .args(sources.iter().map(|source| object(source)))
            .status();
        assert!(linked.unwrap().success(), "the kernels are not linked");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: our own library, without initialisers; the types are those of the kernels and of parts.cpp.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            let symbol = |name: &CStr| {
                let address = libc::dlsym(handle, name.as_ptr());
                assert!(!address.is_null(), "no symbol {name:?}");
                address
            };
            Self {
                launch: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(KernelFn, u32, u32, *const Launch, u64),
                >(symbol(c"shim_launch")),
                codes: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const CodesParams)>(
                    symbol(c"shim_codes"),
                ),
                byte_codes: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const ByteCodesParams),
                >(symbol(c"shim_byte_codes")),
                drawn_codes: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const DrawnCodesParams),
                >(symbol(c"shim_drawn_codes")),
                own_scales: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const OwnScalesParams),
                >(symbol(c"shim_own_scales")),
                wrong_roots: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> usize>(
                    symbol(c"shim_wrong_roots"),
                ),
                wrong_quotients: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(usize) -> usize,
                >(symbol(c"shim_wrong_quotients")),
                wrong_limbs: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> usize>(
                    symbol(c"shim_wrong_limbs"),
                ),
                wrong_warp_sums: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> usize>(
                    symbol(c"shim_wrong_warp_sums"),
                ),
                layout: symbol(c"shim_layout").cast(),
                kernels: KERNELS
                    .iter()
                    .map(|(_, name)| std::mem::transmute::<*mut c_void, KernelFn>(symbol(name)))
                    .collect(),
            }
        }
    }
}

/// Compiles kernels, or parts of them, as C++.
fn compile(root: &Path, source: &Path, object: &Path) {
    let status = Command::new("g++")
        .args(["-std=c++17", "-O2", "-g1", "-fPIC"])
        .args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-ffp-contract=off",
        ])
        // An fma is an instruction, where the processor has it.
        .args(if std::arch::is_x86_feature_detected!("fma") {
            &["-mfma"][..]
        } else {
            &[]
        })
        .args(["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"])
        .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
        .arg("-I")
        .arg(root.join("cuda"))
        .arg("-include")
        .arg(root.join("tests/cuda/shim.hpp"))
        .args(["-x", "c++", "-c", "-o"])
        .args([object, source])
        .status()
        .unwrap();
    assert!(
        status.success(),
        "{} does not compile as C++",
        source.display()
    );
}

/// A plan's table in host memory, and what runs its launches.
struct Host {
    table: Guarded,
    lists: Lists,
}

impl Host {
    fn new(plan: &Plan, resident: u32) -> Result<Self> {
        let (bytes, lists) = table::build(plan.spec(), plan.tensors(), &|_| Ok(resident))?;
        let mut table = Guarded::new(bytes.len(), true);
        table.fill(&bytes);
        Ok(Self { table, lists })
    }

    /// # Safety
    /// The buffers are valid host memory of the plan's sizes.
    unsafe fn step(&self, plan: &Plan, args: &StepArgs<'_>, pass: Option<Pass>, seed: u64) {
        plan.check_step(args).unwrap();
        let call = Call {
            plan,
            args,
            pass,
            stream: std::ptr::null_mut(),
        };
        launch::step(&call, &self.lists, self.table.data.cast(), &mut |work| {
            run(&work, seed);
            Ok(())
        })
        .unwrap();
    }
}

fn run(work: &Work<'_>, seed: u64) {
    // SAFETY: what the caller has promised of its buffers.
    unsafe {
        match work {
            Work::Zero { data, bytes } => data.cast::<u8>().write_bytes(0, *bytes),
            Work::Kernel {
                kernel,
                grid,
                launch,
            } => {
                let launch = std::ptr::from_ref::<Launch>(launch);
                (SHIM.launch)(SHIM.kernels[kernel.0], *grid, THREADS, launch, seed);
            }
        }
    }
}

// ---- memory ------------------------------------------------------------------------------------

/// Zeroed memory between unmapped pages, at one end of its own pages or the other: a wrong access
/// on that side ends the program.
struct Guarded {
    map: *mut c_void,
    mapped: usize,
    data: *mut u8,
    bytes: usize,
}

impl Guarded {
    const PAGE: usize = 4096;

    fn new(bytes: usize, at_end: bool) -> Self {
        let inner = bytes.div_ceil(Self::PAGE).max(1) * Self::PAGE;
        let mapped = inner + 2 * Self::PAGE;
        // SAFETY: a new mapping; the inner pages are within it.
        unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            let first = map.cast::<u8>().add(Self::PAGE);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(first.cast(), inner, protection), 0);
            let data = if at_end {
                first.add(inner - bytes)
            } else {
                first
            };
            Self {
                map,
                mapped,
                data,
                bytes,
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, initialised (to zero), and not written while borrowed.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }

    fn fill(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes);
        // SAFETY: mapped and ours alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.data, bytes.len()) };
    }

    fn buffer(&self) -> Buffer {
        Buffer {
            data: self.data.cast(),
            bytes: self.bytes as i64,
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.map, self.mapped) };
    }
}

// ---- values ------------------------------------------------------------------------------------

/// SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// In (-1, 1), small values more often.
    fn value(&mut self) -> f32 {
        let bits = self.bits();
        let unit = |shift: u32| ((bits >> shift) & 0xff_ffff) as f32 / (1 << 24) as f32;
        let magnitude = unit(0) * unit(24);
        if bits >> 63 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }

    fn pattern(&mut self) -> f32 {
        f32::from_bits(self.bits() as u32)
    }
}

/// What gradients and parameters look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Paint {
    /// As in training.
    Plain,
    /// Per block of 128: zeros, subnormals, values whose squares underflow, large ones.
    Scales,
    /// Mostly plain, with NaN, infinities and squares that overflow here and there.
    NonFinite,
    /// A large value first, and so small ones that only all of them count beside it.
    Outlier,
    /// Any bits at all.
    Wild,
    /// Gradients of 0, and so are means of their squares.
    Zeros,
}

impl Paint {
    fn grad(self, i: usize, random: &mut Random) -> f32 {
        let x = random.value();
        match self {
            Self::Plain => x * 1e-2,
            Self::Scales => match i / 128 % 7 {
                0 => 0.0,
                1 => x * f32::from_bits(0x0000_4000),
                2 => x * 1e-22,
                3 => x * 1e-19,
                4 => x * 1e18,
                5 => -0.0,
                _ => x,
            },
            Self::NonFinite => match random.below(700) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3 => 3e19,
                4 => f32::from_bits(0xffc0_1234),
                _ => x,
            },
            Self::Outlier if i == 0 => 1.0,
            // The squares are between 2^-38 and 2^-37.
            Self::Outlier => (1.0 + 0.4 * x.abs()) * 2.0_f32.powi(-19),
            Self::Wild => random.pattern(),
            Self::Zeros => x * 0.0,
        }
    }

    fn param(self, random: &mut Random) -> f32 {
        match self {
            Self::Wild => random.pattern(),
            Self::NonFinite if random.below(500) == 0 => f32::from_bits(0x7fa0_0001),
            _ => random.value(),
        }
    }
}

fn encode(values: impl IntoIterator<Item = f32>, dtype: Dtype) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in values {
        match dtype {
            Dtype::F16 => bytes.extend(half::f16::from_f32(x).to_bits().to_le_bytes()),
            // bf16 is truncated, so that any pattern of the upper half can come.
            _ => bytes.extend_from_slice(&x.to_le_bytes()[4 - dtype.size()..]),
        }
    }
    bytes
}

// ---- one case ----------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    InPlace,
    Update,
    /// The update takes the gradient's place; needs equal dtypes.
    OverGrad,
}

#[derive(Clone, Debug)]
struct Case {
    shapes: Vec<Vec<i64>>,
    param: Dtype,
    grad: Dtype,
    weights: Weights,
    spec: Spec,
    /// Groups of hyper-parameters, which the tensors belong to in turn.
    groups: usize,
    output: Output,
    nonfinite: NonFinite,
    paint: Paint,
    /// Hyper-parameters in memory.
    in_memory: bool,
    /// And the step number counted there.
    counted: bool,
    hyper: Hyper,
    first_step: i32,
    /// Stage by stage.
    staged: bool,
    /// Buffers end at an unmapped page (so that most are not aligned), or begin at one.
    at_end: bool,
    /// States are any bytes at first.
    wild_state: bool,
    /// Thread blocks that the imagined device holds.
    resident: u32,
    /// Offsets and global shapes of tensors, which are shards then.
    boxes: Vec<[Vec<i64>; 2]>,
    /// Tensors are the first of three parts, where such a shard exists, and stepped as the last.
    moved: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            shapes: vec![vec![4097]],
            param: Dtype::F32,
            grad: Dtype::F32,
            weights: Weights::Plain,
            spec: preset("adamw4-block"),
            groups: 1,
            output: Output::InPlace,
            nonfinite: NonFinite::Default,
            paint: Paint::Plain,
            in_memory: false,
            counted: false,
            hyper: Hyper::default(),
            first_step: 1,
            staged: false,
            at_end: false,
            wild_state: false,
            resident: 3,
            boxes: Vec::new(),
            moved: false,
        }
    }
}

/// A preset whose small tensors have codes too.
fn preset(name: &str) -> Spec {
    Spec {
        threshold: 0,
        ..Spec::preset(name).unwrap()
    }
}

/// Where the last of three parts of a tensor lies, given the first, unless its states cannot move.
fn last_part(tensor: &TensorPlan) -> Option<Vec<i64>> {
    let dithered = tensor.states.iter().any(|state| state.quantizer.dither);
    let ends = tensor.global_shape.iter().zip(&tensor.info.shape);
    (tensor.is_shard() && !dithered).then(|| ends.map(|(global, extent)| global - extent).collect())
}

/// All memory of one side of the comparison.
struct Side {
    params: Vec<Guarded>,
    grads: Vec<Guarded>,
    updates: Vec<Guarded>,
    state: Vec<Guarded>,
    scratch: Guarded,
    hyper: Guarded,
    step: Guarded,
    skipped: Guarded,
    groups: Vec<Hyper>,
    /// Where shards are moved to.
    offsets: Vec<Option<Vec<i64>>>,
}

impl Side {
    fn new(plan: &Plan, case: &Case) -> Self {
        let memory = |bytes: i64| Guarded::new(bytes as usize, case.at_end);
        let tensors = |dtype: Dtype| {
            let of = |tensor: &crate::plan::TensorPlan| memory(tensor.numel * dtype.size() as i64);
            plan.tensors().iter().map(of).collect::<Vec<_>>()
        };
        Self {
            params: tensors(case.param),
            grads: tensors(case.grad),
            updates: match case.output {
                Output::Update => tensors(case.param),
                Output::InPlace | Output::OverGrad => Vec::new(),
            },
            state: plan.buffers().iter().map(|b| memory(b.bytes)).collect(),
            // Room for the tickets of fused launches and for tensors at other places, and something
            // else before each step.
            scratch: memory(
                plan.scratch_bytes()
                    + (8 + size_of::<Tensor>() as i64) * plan.tensors().len() as i64,
            ),
            hyper: memory((4 * Hyper::COUNT * plan.groups()) as i64),
            step: memory(4),
            skipped: memory(16),
            groups: (0..plan.groups())
                .map(|group| Hyper {
                    lr: case.hyper.lr * (1.0 + group as f32),
                    beta1: case.hyper.beta1 * (1.0 - 0.125 * group as f32),
                    ..case.hyper
                })
                .collect(),
            offsets: plan.tensors().iter().map(last_part).collect(),
        }
    }

    /// Fills the inputs of step `t`; the same on both sides.
    fn paint(&mut self, case: &Case, t: i32) {
        let mut random = Random(u64::from(t.cast_unsigned()) << 32 | self.params.len() as u64);
        let first = t == case.first_step;
        for (param, grad) in self.params.iter_mut().zip(&mut self.grads) {
            let count = param.bytes / case.param.size();
            let values = (0..count).map(|_| case.paint.param(&mut random));
            let values = encode(values, case.param);
            if first {
                param.fill(&values);
            }
            let values = (0..count).map(|i| case.paint.grad(i, &mut random));
            let values = encode(values, case.grad);
            grad.fill(&values);
        }
        if first && case.wild_state {
            for state in &mut self.state {
                let values: Vec<u8> = (0..state.bytes).map(|_| random.bits() as u8).collect();
                state.fill(&values);
            }
        }
        let rubbish: Vec<u8> = (0..self.scratch.bytes)
            .map(|_| random.bits() as u8)
            .collect();
        self.scratch.fill(&rubbish);
        let values = self.groups.iter().flat_map(|h| {
            [
                h.lr,
                h.beta1,
                h.beta2,
                h.eps,
                h.weight_decay,
                h.grad_scale,
                h.clip_factor,
                h.skip,
            ]
        });
        let values = encode(values, Dtype::F32);
        self.hyper.fill(&values);
        self.step.fill(&t.to_le_bytes());
    }

    fn with_args<T>(&self, case: &Case, t: i32, body: impl FnOnce(&StepArgs<'_>) -> T) -> T {
        let list = |of: &[Guarded]| of.iter().map(Guarded::buffer).collect::<Vec<_>>();
        let (params, grads, state) = (list(&self.params), list(&self.grads), list(&self.state));
        let updates = match case.output {
            Output::InPlace => None,
            Output::Update => Some(list(&self.updates)),
            Output::OverGrad => Some(grads.clone()),
        };
        let offsets: Vec<_> = self.offsets.iter().map(Option::as_deref).collect();
        body(&StepArgs {
            params: &params,
            grads: &grads,
            updates: updates.as_deref(),
            state: &state,
            scratch: self.scratch.buffer(),
            hyper: if case.counted {
                HyperSource::Counted {
                    hyper: self.hyper.data.cast(),
                    step: self.step.data.cast(),
                }
            } else if case.in_memory {
                HyperSource::Memory {
                    hyper: self.hyper.data.cast(),
                    step: self.step.data.cast(),
                }
            } else {
                HyperSource::Host(&self.groups, t)
            },
            nonfinite: case.nonfinite,
            offsets: case.moved.then_some(offsets.as_slice()),
            skipped: self.skipped.data.cast(),
        })
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, usize, &Guarded)> {
        let list = |name, of| {
            let of: &Vec<Guarded> = of;
            of.iter().enumerate().map(move |(i, one)| (name, i, one))
        };
        list("params", &self.params)
            .chain(list("grads", &self.grads))
            .chain(list("updates", &self.updates))
            .chain(list("state", &self.state))
            .chain([("skipped", 0, &self.skipped), ("step", 0, &self.step)])
    }

    fn require_same(&self, got: &Self, what: impl Fn() -> String) {
        for ((name, i, want), (_, _, got)) in self.all().zip(got.all()) {
            let (want, got) = (want.bytes(), got.bytes());
            if want != got {
                let at = (0..want.len()).find(|&at| want[at] != got[at]).unwrap() & !3;
                let (want, got) = (want[at..].chunks(4).next(), got[at..].chunks(4).next());
                panic!(
                    "{name}[{i}] differs at byte {at}: {want:02x?} wanted, {got:02x?} got; {}",
                    what()
                );
            }
        }
    }
}

fn reference() -> Arc<Context> {
    Arc::new(Context::Cpu(
        CpuContext::new(1, Variant::Reference).unwrap(),
    ))
}

impl Case {
    fn tensors(&self) -> Vec<TensorInfo> {
        let tensors = self.shapes.iter().enumerate().map(|(i, shape)| {
            let whole = TensorInfo {
                grad_dtype: self.grad,
                weights: self.weights,
                group: i % self.groups,
                ..TensorInfo::new(format!("t{i}"), shape, self.param)
            };
            if let Some([offset, global]) = self.boxes.get(i) {
                return TensorInfo {
                    offset: Some(offset.clone()),
                    global_shape: Some(global.clone()),
                    ..whole
                };
            }
            match self.moved.then(|| self.first_part(&whole)) {
                Some(Some(shard)) => shard,
                _ => whole,
            }
        });
        tensors.collect()
    }

    /// The kernels that step the tensors.
    fn kernels(&self) -> Vec<&'static CStr> {
        let lists = Host::new(&self.plan(), 1).unwrap().lists;
        let used = lists.apply.iter().chain(&lists.fused);
        used.map(|list| KERNELS[list.kernel.0].1).collect()
    }

    /// That of common tensors, of an optimizer and the form of its states.
    fn common_kernel(&self, optimizer: &str, states: &str) -> CString {
        let beside = match self.weights {
            Weights::Plain => "",
            weights => weights.name(),
        };
        let (param, grad) = (self.param.name(), self.grad.name());
        CString::new(format!(
            "lowbit_k_{optimizer}_{param}{beside}_{grad}_{states}"
        ))
        .unwrap()
    }

    /// The tensor as the first third of one along its first axis of more than 1; `None` if that would
    /// cut a block, or the last third would.
    fn first_part(&self, whole: &TensorInfo) -> Option<TensorInfo> {
        let axis = whole.shape.iter().position(|extent| *extent > 1)?;
        let mut global = whole.shape.clone();
        global[axis] *= 3;
        let part = |number: i64| {
            let mut offset = vec![0; global.len()];
            offset[axis] = number * whole.shape[axis];
            TensorInfo {
                group: 0,
                global_shape: Some(global.clone()),
                offset: Some(offset),
                ..whole.clone()
            }
        };
        for number in [1, 2] {
            Plan::new(reference(), &self.spec, vec![part(number)]).ok()?;
        }
        Some(TensorInfo {
            group: whole.group,
            ..part(0)
        })
    }

    fn plan(&self) -> Plan {
        Plan::new(reference(), &self.spec, self.tensors()).unwrap()
    }

    /// Three steps on both sides, each compared. Returns how many elements were.
    fn run(&self) -> i64 {
        let plan = self.plan();
        let host = Host::new(&plan, self.resident).unwrap();
        let (mut want, mut got) = (Side::new(&plan, self), Side::new(&plan, self));
        for t in self.first_step..self.first_step.saturating_add(3) {
            want.paint(self, t);
            got.paint(self, t);
            let seed = u64::from(t.cast_unsigned());
            want.with_args(self, t, |args| {
                // SAFETY: host memory of the sizes that the plan says.
                unsafe { plan.step(args, Stage::All, std::ptr::null_mut()) }.unwrap();
            });
            got.with_args(self, t, |args| {
                let passes: Vec<_> = if self.staged {
                    passes(&plan).map(Some).collect()
                } else {
                    vec![None]
                };
                for pass in passes {
                    // SAFETY: as above.
                    unsafe { host.step(&plan, args, pass, seed) };
                }
            });
            want.require_same(&got, || format!("step {t}: {self:?}"));
        }
        let numels = plan.tensors().iter().map(|tensor| tensor.numel);
        3 * numels.sum::<i64>()
    }
}

/// The passes of a plan's step.
fn passes(plan: &Plan) -> impl Iterator<Item = Pass> {
    plan.passes()
        .map(|(pass, ..)| pass)
        .chain(std::iter::once(Pass::Apply))
}

/// Runs cases on all processors.
fn run_all(cases: &[Case]) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let elements = std::sync::atomic::AtomicI64::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, relaxed)) {
                    elements.fetch_add(case.run(), relaxed);
                }
            });
        }
    });
    println!(
        "{} cases, {} elements compared",
        cases.len(),
        elements.into_inner()
    );
}

const PRESETS: [&str; 12] = [
    "adamw4-block",
    "adamw4",
    "adamw4-robust",
    "adamw32",
    "sgdm4",
    "lion4",
    "adamw8",
    "sgdm8",
    "lion8",
    "factor4",
    "sm3",
    "adafactor",
];

/// Parameters, weights and gradients that a preset is tried with: all where kernels are made for each.
fn forms(preset: &str) -> &'static [(Dtype, Weights, Dtype)] {
    const ALL: &[(Dtype, Weights, Dtype)] = &FORMS;
    if ["sm3", "adafactor"].contains(&preset) {
        &ALL[1..4]
    } else {
        ALL
    }
}

/// Sizes around every boundary: none, one, vector, lane, block, thread block, ragged rows.
fn shapes() -> Vec<Vec<i64>> {
    let sizes = [
        0, 1, 2, 3, 4, 5, 31, 127, 128, 129, 255, 256, 1023, 1024, 1025, 4096, 4097,
    ];
    let mut shapes: Vec<Vec<i64>> = sizes.into_iter().map(|size| vec![size]).collect();
    shapes.extend([
        vec![],
        vec![40, 257],
        vec![3, 128],
        vec![2, 3, 5, 7, 11],
        vec![5, 132],
        vec![7, 130],
        vec![9, 129],
        vec![64, 3, 3, 3],
        vec![300, 0],
        vec![0, 300],
        vec![70, 1400],
        vec![3, 35, 256],
    ]);
    shapes
}

// ---- tests -------------------------------------------------------------------------------------

#[test]
fn layouts_are_those_of_the_kernels() {
    macro_rules! layout {
        ($type:ty: $($field:ident)*) => {
            [size_of::<$type>(), $(offset_of!($type, $field)),*]
        };
    }
    let common = |at| offset_of!(Scalars, common) + at;
    let want = [
        &layout!(Codebook: midpoints levels)[..],
        &layout!(State: kind per_byte scaling block rounding option spacing buffer codebook word),
        &layout!(Factor: word sum fresh count axes),
        &layout!(Tensor: rows cols units first_col param_max param_sum update_max update_sum block param_dtype grad_dtype weights group
            scalars index global states axes lead hash words first_row tile_rows shape offset global_shape state),
        &layout!(Segment: first tensor kind),
        &[size_of::<Scalars>()],
        &layout!(numerics::Scalars: beta1 one_minus_beta1 beta2 one_minus_beta2 eps lr_bc1 lr_wd
            inv_sqrt_bc2 grad_scale skip)[1..]
            .iter()
            .map(|at| common(*at))
            .collect::<Vec<_>>(),
        &layout!(Scalars: l2 inv_bc2)[1..],
        &layout!(Launch: table tensors segments tasks hyper step_number skipped statistics ticket done
            sums fresh update_maxima update_sums keys step flags groups tensor_count state decay weight dampening decay_rate eps2 clip_threshold
            grad_scale max_norm norm clip_factor words),
    ]
    .concat();
    // SAFETY: an array of as many numbers.
    let got = unsafe { std::slice::from_raw_parts(SHIM.layout, want.len()) };
    assert_eq!(got, want);
}

#[test]
fn every_shape_dtype_and_output_equals_the_reference() {
    let mut cases = Vec::new();
    for name in PRESETS {
        for &(param, weights, grad) in forms(name) {
            for output in [Output::InPlace, Output::Update, Output::OverGrad] {
                if output == Output::OverGrad && param != grad
                    || output != Output::InPlace && weights != Weights::Plain
                {
                    continue;
                }
                for at_end in [false, true] {
                    cases.push(Case {
                        shapes: shapes(),
                        param,
                        weights,
                        grad,
                        spec: preset(name),
                        output,
                        at_end,
                        ..Case::default()
                    });
                }
            }
        }
    }
    run_all(&cases);
}

#[test]
fn unusual_values_equal_the_reference_under_every_policy() {
    let mut cases = Vec::new();
    for name in PRESETS {
        for &(param, weights, grad) in forms(name) {
            for paint in [Paint::Scales, Paint::NonFinite, Paint::Wild] {
                for nonfinite in [
                    NonFinite::Default,
                    NonFinite::SkipTensor,
                    NonFinite::SkipStep,
                    NonFinite::Propagate,
                ] {
                    for output in [Output::InPlace, Output::Update] {
                        if output != Output::InPlace && weights != Weights::Plain {
                            continue;
                        }
                        cases.push(Case {
                            shapes: vec![vec![2048], vec![6, 1001], vec![257]],
                            param,
                            weights,
                            grad,
                            spec: preset(name),
                            output,
                            nonfinite,
                            paint,
                            wild_state: paint == Paint::Wild,
                            ..Case::default()
                        });
                    }
                }
            }
        }
    }
    run_all(&cases);
}

#[test]
fn adam_equals_the_reference_in_the_kernels_of_adamw() {
    let mut cases = Vec::new();
    for name in ["adamw4-block", "adamw32", "adamw8", "factor4"] {
        for (param, weights, grad) in FORMS {
            for (paint, weight_decay) in [
                (Paint::Plain, 0.0),
                (Paint::Plain, 0.1),
                (Paint::NonFinite, 0.1),
                (Paint::Wild, 3.0),
            ] {
                cases.push(Case {
                    shapes: vec![vec![2048], vec![6, 1001], vec![5, 384]],
                    param,
                    weights,
                    grad,
                    spec: Spec {
                        optimizer: Optimizer::Adam,
                        ..preset(name)
                    },
                    paint,
                    wild_state: paint == Paint::Wild,
                    hyper: Hyper {
                        weight_decay,
                        ..Hyper::default()
                    },
                    ..Case::default()
                });
            }
        }
    }
    run_all(&cases);
}

#[test]
fn options_of_sgdm_equal_the_reference_in_its_kernels_for_common_tensors() {
    let mut cases = Vec::new();
    for (nesterov, dampening) in [(false, 0.0), (true, 0.0), (false, 0.25)] {
        for decoupled in [false, true] {
            for (paint, weight_decay) in [
                (Paint::Plain, 0.0),
                (Paint::Plain, 0.1),
                (Paint::NonFinite, 0.1),
                (Paint::Wild, 3.0),
            ] {
                for in_memory in [false, true] {
                    let (param, weights, grad) = FORMS[cases.len() % FORMS.len()];
                    cases.push(Case {
                        shapes: vec![vec![2048], vec![6, 1001], vec![5, 384]],
                        param,
                        weights,
                        grad,
                        spec: Spec {
                            sgdm: Some(SgdmOptions {
                                nesterov,
                                dampening,
                                decoupled,
                            }),
                            ..preset("sgdm4")
                        },
                        paint,
                        wild_state: paint == Paint::Wild,
                        in_memory,
                        hyper: Hyper {
                            weight_decay,
                            ..Hyper::default()
                        },
                        ..Case::default()
                    });
                }
            }
        }
    }
    run_all(&cases);
}

/// Blocks that a warp goes on to in the same row, in the next one, some rows on; rows that are not whole
/// blocks, and of more than two axes; means that are zero, not finite, or beyond what is divided without
/// checks.
#[test]
fn factored_adamw_equals_the_reference_in_its_kernels_for_common_tensors() {
    let mut cases = Vec::new();
    for optimizer in [Optimizer::Adamw, Optimizer::Adam] {
        for paint in [
            Paint::Plain,
            Paint::Scales,
            Paint::NonFinite,
            Paint::Wild,
            Paint::Zeros,
        ] {
            for (param, weights, grad) in FORMS {
                let number = cases.len();
                let outputs = match weights {
                    Weights::Plain => [Output::InPlace, Output::Update],
                    _ => [Output::InPlace; 2],
                };
                let policies = [
                    NonFinite::Default,
                    NonFinite::Propagate,
                    NonFinite::SkipTensor,
                    NonFinite::SkipStep,
                ];
                let case = Case {
                    shapes: vec![
                        vec![12, 1152],
                        vec![70, 128],
                        vec![2, 9, 384],
                        vec![10, 600],
                        vec![129, 130],
                    ],
                    param,
                    weights,
                    grad,
                    spec: Spec {
                        optimizer,
                        maximize: number % 9 == 8,
                        seed: number as u64,
                        ..preset("factor4")
                    },
                    groups: 1 + number % 2,
                    output: outputs[number / 3 % 2],
                    nonfinite: policies[number % 7 % 4],
                    paint,
                    in_memory: number % 4 == 1,
                    hyper: Hyper {
                        weight_decay: [0.0, 0.1, 3.0][number % 3],
                        skip: if number % 10 == 9 { 1.0 } else { 0.0 },
                        ..Hyper::default()
                    },
                    first_step: [1, 1000][number / 2 % 2],
                    staged: number % 5 == 2,
                    at_end: number % 6 == 4,
                    wild_state: paint == Paint::Wild,
                    resident: [1, 3, 100][number % 3],
                    ..Case::default()
                };
                let want = case.common_kernel("adamw", "factor4");
                assert_eq!(case.kernels(), [want.as_c_str()]);
                cases.push(case);
            }
        }
    }
    run_all(&cases);
}

#[test]
fn kernels_for_common_tensors_leave_means_that_are_not_rows_and_columns_of_the_grid() {
    let factored = |axes, shape: &[i64]| {
        let mut spec = preset("factor4");
        if let Some(v) = &mut spec.v {
            v.factor_axes = axes;
        }
        let case = Case {
            shapes: vec![shape.to_vec()],
            spec,
            ..Case::default()
        };
        case.kernels()
    };
    let (common, any) = (
        c"lowbit_k_adamw_f32_f32_factor4",
        c"lowbit_k_adamw_factored",
    );
    for (axes, shape, want) in [
        (FactorAxes::Merged, &[300, 257][..], common),
        (FactorAxes::LastTwo, &[300, 257], common),
        (FactorAxes::LargestTwo, &[256, 257], common),
        (FactorAxes::Merged, &[64, 64, 3, 3], common),
        (FactorAxes::Merged, &[8, 300, 200], common),
        // Rows of one block and more that hold several rows of means.
        (FactorAxes::Merged, &[300, 64], any),
        // The means that lie along the rows are not those of columns.
        (FactorAxes::LargestTwo, &[300, 257], any),
        (FactorAxes::Merged, &[300, 2, 200], any),
        // Some for each matrix.
        (FactorAxes::LastTwo, &[8, 300, 200], any),
    ] {
        assert_eq!(factored(axes, shape), [want], "{axes:?} {shape:?}");
    }
}

#[test]
fn new_means_can_be_read_four_at_a_time() {
    let tensors = [[40, 257], [3, 129], [129, 131]].map(|shape| {
        let name = format!("{shape:?}");
        TensorInfo::new(name, &shape, Dtype::F32)
    });
    let plan = Plan::new(reference(), &preset("factor4"), tensors.to_vec()).unwrap();
    assert_eq!(plan.scratch.offsets()[Pass::Apply as usize] % 16, 0);
    let factors = plan.tensors().iter().filter_map(TensorPlan::factored);
    for factor in factors.flat_map(|(_, factors)| factors) {
        assert_eq!(factor.fresh % 4, 0);
    }
}

/// Any of some values.
fn any<T: Clone>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len() as u64) as usize].clone()
}

const FACTOR_AXES: &[FactorAxes] = &[
    FactorAxes::Merged,
    FactorAxes::LastTwo,
    FactorAxes::LargestTwo,
];

/// A quantizer for a state, one that exists.
fn any_quantizer(random: &mut Random, state: &str) -> Quantizer {
    loop {
        let levels: &[f32] = if state == "v" {
            &[0.01, 0.1, 0.25, 0.7, 1.0]
        } else {
            &[-1.0, -0.3, 0.0, 0.5, 0.9]
        };
        let mapping = any(
            random,
            &[
                Mapping::De,
                Mapping::De0,
                Mapping::Linear,
                Mapping::LinearWithZero,
                Mapping::Power2,
                Mapping::Nf4,
                Mapping::Geometric,
                Mapping::Table,
            ],
        );
        let normalization = any(
            random,
            &[
                Normalization::Block,
                Normalization::Block,
                Normalization::Rank1,
                Normalization::Rank1,
                Normalization::Tensor,
                Normalization::Row,
                Normalization::Column,
                Normalization::Factored,
            ],
        );
        let block = normalization == Normalization::Block;
        let quantizer = Quantizer {
            bits: any(random, &[2, 3, 4, 4, 5, 6, 7, 8, 8]),
            normalization: Some(normalization),
            block: if block {
                any(random, &[32, 64, 128, 256, 1024, 4096])
            } else {
                128
            },
            mapping: Some(mapping),
            levels: if mapping == Mapping::Table {
                levels.into()
            } else {
                Arc::from([])
            },
            rounding: any(
                random,
                &[
                    Rounding::Nearest,
                    Rounding::Nearest,
                    Rounding::Stochastic,
                    Rounding::StochasticLog,
                    Rounding::StochasticPreconditioner,
                ],
            ),
            scale_correction: random.below(6) == 0,
            dither: random.below(8) == 0,
            factor_axes: if normalization == Normalization::Factored {
                any(random, FACTOR_AXES)
            } else {
                FactorAxes::Merged
            },
        };
        if random.below(8) == 0 {
            return Quantizer::f32();
        }
        if quantizer.table(state).is_ok() {
            return quantizer;
        }
    }
}

/// Those that have kernels.
const OPTIMIZERS: &[Optimizer] = &[
    Optimizer::Adamw,
    Optimizer::Adam,
    Optimizer::Sgdm,
    Optimizer::Lion,
    Optimizer::Sm3,
    Optimizer::Adafactor,
];

/// One of all combinations of options.
fn any_case(random: &mut Random) -> Case {
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16];
    let (param, grad) = (any(random, &dtypes), any(random, &dtypes));
    let forms = [
        Weights::Plain,
        Weights::Stochastic,
        Weights::Master,
        Weights::Remainder16,
        Weights::Correction8,
    ];
    let mut weights = any(random, &forms);
    if weights.check(param).is_err() {
        weights = Weights::Plain;
    }
    let optimizer = any(random, OPTIMIZERS);
    let adam = matches!(optimizer, Optimizer::Adamw | Optimizer::Adam);
    let options = random.bits();
    let adafactor = optimizer == Optimizer::Adafactor;
    // Adafactor's scales do not reach across blocks, and its v is not rounded in preconditioner space.
    let fits = |quantizer: &Quantizer| {
        let blocks = [
            None,
            Some(Normalization::Block),
            Some(Normalization::Factored),
        ];
        !adafactor
            || (blocks.contains(&quantizer.normalization)
                && quantizer.rounding != Rounding::StochasticPreconditioner)
    };
    let quantizer = |random: &mut Random, state| loop {
        let quantizer = any_quantizer(random, state);
        if fits(&quantizer) {
            return quantizer;
        }
    };
    let has_m = !(adafactor || optimizer == Optimizer::Sm3) || random.below(4) != 0;
    let m = has_m.then(|| quantizer(random, "m"));
    let v = (adam || adafactor).then(|| quantizer(random, "v"));
    let factored = (v.as_ref()).is_some_and(|v| v.normalization == Some(Normalization::Factored));
    let spec = Spec {
        m,
        v,
        amsgrad: adam && !factored && random.below(4) == 0,
        sgdm: (optimizer == Optimizer::Sgdm).then_some(SgdmOptions {
            nesterov: options & 1 != 0,
            // Nesterov's takes none.
            dampening: if options & 3 == 2 { 0.1 } else { 0.0 },
            decoupled: options & 4 != 0,
        }),
        adafactor: adafactor.then_some(AdafactorOptions {
            relative_step: options & 8 != 0,
            scale_parameter: options & 16 != 0,
            clip_threshold: [0.0, 0.1, 1.0, 1.0][(options >> 5 & 3) as usize],
            decay_rate: [0.8, 0.5][(options >> 7 & 1) as usize],
            eps2: 1e-3,
        }),
        maximize: random.below(4) == 0,
        seed: random.bits(),
        threshold: 0,
        ..Spec::new(optimizer)
    };
    let sets = [
        vec![vec![1000], vec![3, 130], vec![]],
        vec![vec![2, 3, 5, 7, 11], vec![0, 4], vec![70]],
        vec![vec![40, 257], vec![5]],
        vec![vec![17, 3, 3, 3], vec![9, 129], vec![1, 1, 300]],
        vec![vec![5000], vec![3, 4100]],
        vec![vec![4, 40, 50], vec![33]],
    ];
    Case {
        shapes: any(random, &sets),
        param,
        grad,
        weights,
        spec,
        groups: any(random, &[1, 1, 2]),
        output: if weights != Weights::Plain {
            Output::InPlace
        } else if param == grad {
            any(random, &[Output::InPlace, Output::Update, Output::OverGrad])
        } else {
            any(random, &[Output::InPlace, Output::Update])
        },
        nonfinite: any(
            random,
            &[
                NonFinite::Default,
                NonFinite::SkipTensor,
                NonFinite::SkipStep,
                NonFinite::Propagate,
            ],
        ),
        paint: any(
            random,
            &[Paint::Plain, Paint::Plain, Paint::Scales, Paint::NonFinite],
        ),
        in_memory: random.below(2) == 0,
        counted: random.below(3) == 0,
        hyper: Hyper {
            clip_factor: any(random, &[1.0, 0.37]),
            beta2: any(random, &[0.999, 0.95]),
            skip: if random.below(16) == 0 { 1.0 } else { 0.0 },
            ..Hyper::default()
        },
        first_step: any(random, &[1, 7, 100_000]),
        staged: random.below(4) == 0,
        at_end: random.below(2) == 0,
        wild_state: false,
        resident: any(random, &[1, 3, 100]),
        boxes: Vec::new(),
        moved: random.below(4) == 0,
    }
}

#[test]
fn sampled_combinations_of_all_options_equal_the_reference() {
    let mut random = Random(5);
    let cases: Vec<_> = (0..1600).map(|_| any_case(&mut random)).collect();
    run_all(&cases);
}

#[test]
fn options_of_two_passes_equal_the_reference() {
    let mut random = Random(16);
    let mut cases = Vec::new();
    for number in 0..240 {
        let case = any_case(&mut random);
        let name = ["adamw4-robust", "adamw4"][number % 3 / 2];
        let (param, weights, grad) = any(&mut random, &FORMS);
        cases.push(Case {
            param,
            weights,
            grad,
            output: match case.output {
                _ if weights != Weights::Plain => Output::InPlace,
                Output::OverGrad if param != grad => Output::Update,
                output => output,
            },
            spec: Spec {
                maximize: case.spec.maximize,
                seed: case.spec.seed,
                ..preset(name)
            },
            ..case
        });
    }
    run_all(&cases);
}

/// Tiles of all shapes: factors whose places change from row to row, after some rows, or not at all; rows
/// that are whole fours and others; a few rows or hundreds; rows of zeros.
#[test]
fn factors_of_any_axes_equal_the_reference_in_tiles() {
    let shapes = [
        vec![vec![300, 132], vec![2, 129]],
        vec![vec![5, 21, 256], vec![3, 70, 130]],
        vec![vec![40, 2, 3, 128], vec![2, 40, 5, 140]],
        vec![vec![70, 1100], vec![64, 9, 3, 3], vec![1, 1, 300]],
        vec![vec![520, 200], vec![6, 4100], vec![130, 3]],
        vec![vec![12, 2, 2, 2, 160], vec![33, 160]],
    ];
    let mut cases = Vec::new();
    for (number, shapes) in shapes.iter().enumerate() {
        for name in ["factor4", "adafactor"] {
            for (choice, axes) in FACTOR_AXES.iter().enumerate() {
                let mut spec = preset(name);
                if let Some(v) = &mut spec.v {
                    v.factor_axes = *axes;
                }
                let paints = [Paint::Plain, Paint::Scales, Paint::NonFinite];
                cases.push(Case {
                    shapes: shapes.clone(),
                    param: [Dtype::F32, Dtype::Bf16, Dtype::F16][number % 3],
                    grad: [Dtype::Bf16, Dtype::F32, Dtype::F16][choice],
                    spec,
                    nonfinite: NonFinite::Propagate,
                    paint: paints[(number + choice) % 3],
                    // Some buffers that end at a page are not aligned.
                    at_end: number % 2 == 1,
                    staged: choice == 1,
                    moved: choice == 2,
                    ..Case::default()
                });
            }
        }
    }
    // Terms that are rounded to the units of the sums of all elements, of a row and of a column.
    for (name, shape) in [
        ("factor4", vec![256, 256]),
        ("factor32", vec![2, 32768]),
        ("factor4", vec![16384, 32]),
    ] {
        let mut spec = preset(name);
        for quantizer in [&mut spec.m, &mut spec.v].into_iter().flatten() {
            quantizer.block = 32;
        }
        cases.push(Case {
            shapes: vec![shape],
            spec,
            paint: Paint::Outlier,
            ..Case::default()
        });
    }
    // Tiles of 64 and of 128 rows for a warp, with rows and columns that do not fill them.
    for (shape, paint, grad) in [
        (vec![530, 500], Paint::Plain, Dtype::Bf16),
        (vec![1100, 396], Paint::Outlier, Dtype::F32),
        (vec![1030, 644], Paint::Scales, Dtype::Bf16),
        (vec![520, 900], Paint::NonFinite, Dtype::F16),
    ] {
        cases.push(Case {
            shapes: vec![shape],
            spec: preset("factor4"),
            paint,
            grad,
            ..Case::default()
        });
    }
    // Adam's gradient has its parameter in it; m's scales are statistics beside the factors.
    for normalization in [Normalization::Block, Normalization::Rank1] {
        let mut spec = preset("factor4");
        spec.optimizer = Optimizer::Adam;
        if let Some(m) = &mut spec.m {
            m.normalization = Some(normalization);
        }
        cases.push(Case {
            shapes: vec![vec![40, 256], vec![33, 257], vec![3, 35, 256]],
            weights: Weights::Remainder16,
            param: Dtype::Bf16,
            spec,
            hyper: Hyper {
                weight_decay: 0.1,
                ..Hyper::default()
            },
            ..Case::default()
        });
    }
    run_all(&cases);
}

#[test]
fn shards_equal_the_reference_of_the_whole() {
    for name in [
        "adamw4",
        "adamw4-robust",
        "adamw8",
        "adamw4-block",
        "factor4",
        "sm3",
        "adafactor",
    ] {
        for axis in [0, 1] {
            shards(name, axis);
        }
    }
}

/// Combines the statistics of a pass, of two shards.
fn reduce(sides: &mut [Side; 2], pass: Pass, offset: usize, count: usize) {
    let size = match pass {
        Pass::Maxima | Pass::UpdateMaxima => 4,
        _ => 8,
    };
    let region = offset..offset + size * count;
    let [a, b] = sides.each_ref().map(|side| side.scratch.bytes().to_vec());
    let pairs = a[region.clone()]
        .chunks(size)
        .zip(b[region.clone()].chunks(size));
    let both: Vec<u8> = pairs
        .flat_map(|(a, b)| match size {
            4 => {
                let [a, b] = [a, b].map(|x| i32::from_le_bytes(x.try_into().unwrap()));
                a.max(b).to_le_bytes().to_vec()
            }
            _ => {
                let [a, b] = [a, b].map(|x| i64::from_le_bytes(x.try_into().unwrap()));
                (a + b).to_le_bytes().to_vec()
            }
        })
        .collect();
    for (side, mut scratch) in sides.iter_mut().zip([a, b]) {
        scratch[region.clone()].copy_from_slice(&both);
        side.scratch.fill(&scratch);
    }
}

/// Two shards of one tensor, whose statistics are reduced between the stages.
fn shards(name: &str, axis: usize) {
    let global = [16_i64, 512];
    let cut = [[6, 10], [256, 256]][axis];
    let mut spec = preset(name);
    for quantizer in [&mut spec.m, &mut spec.v].into_iter().flatten() {
        quantizer.rounding = Rounding::Stochastic;
    }
    let case = Case {
        spec: spec.clone(),
        param: Dtype::Bf16,
        weights: Weights::Stochastic,
        ..Case::default()
    };
    let part = |i: usize| {
        let (mut shape, mut offset) = (global.to_vec(), vec![0; 2]);
        shape[axis] = cut[i];
        offset[axis] = if i == 0 { 0 } else { cut[0] };
        (shape, offset)
    };
    let plan = |shape: &[i64], offset: Option<&[i64]>| {
        let info = TensorInfo {
            grad_dtype: Dtype::F32,
            weights: Weights::Stochastic,
            global_shape: offset.is_some().then(|| global.to_vec()),
            offset: offset.map(<[i64]>::to_vec),
            ..TensorInfo::new("w", shape, Dtype::Bf16)
        };
        Plan::new(reference(), &spec, vec![info]).unwrap()
    };
    let whole = plan(&global, None);
    let mut want = Side::new(&whole, &case);
    let plans = [0, 1].map(|i| {
        let (shape, offset) = part(i);
        plan(&shape, Some(&offset))
    });
    let hosts = [0, 1].map(|i: usize| Host::new(&plans[i], 3).unwrap());
    let mut sides = [0, 1].map(|i: usize| Side::new(&plans[i], &case));
    // The part of a tensor's bytes that a shard has.
    let slice = |bytes: &[u8], i: usize| {
        let (shape, offset) = part(i);
        let size = bytes.len() / (global[0] * global[1]) as usize;
        let mut part = Vec::new();
        for row in offset[0]..offset[0] + shape[0] {
            let first = (row * global[1] + offset[1]) as usize;
            part.extend_from_slice(&bytes[first * size..(first + shape[1] as usize) * size]);
        }
        part
    };
    for t in 1..4 {
        want.paint(&case, t);
        for (i, side) in sides.iter_mut().enumerate() {
            side.paint(&case, t);
            side.params[0].fill(&slice(want.params[0].bytes(), i));
            side.grads[0].fill(&slice(want.grads[0].bytes(), i));
        }
        want.with_args(&case, t, |args| {
            // SAFETY: host memory of the sizes that the plan says.
            unsafe { whole.step(args, Stage::All, std::ptr::null_mut()) }.unwrap();
        });
        for pass in passes(&plans[0]) {
            for ((side, host), plan) in sides.iter().zip(&hosts).zip(&plans) {
                // SAFETY: as above.
                side.with_args(&case, t, |args| unsafe {
                    host.step(plan, args, Some(pass), 0);
                });
            }
            if let Some((_, offset, count)) = plans[0].passes().find(|(of, ..)| *of == pass) {
                reduce(&mut sides, pass, offset as usize, count as usize);
            }
        }
        for (i, side) in sides.iter().enumerate() {
            let expected = slice(want.params[0].bytes(), i);
            assert!(
                side.params[0].bytes() == expected,
                "{name}, axis {axis}, step {t}"
            );
        }
    }
}

#[test]
fn states_as_values_equal_the_reference() {
    let mut random = Random(9);
    for _ in 0..300 {
        let case = Case {
            // Shards have no statistics to make global scales of.
            moved: false,
            ..any_case(&mut random)
        };
        let plan = case.plan();
        let host = Host::new(&plan, 3).unwrap();
        let state = random.below(plan.spec().states().len() as u64) as usize;
        let numels = plan.tensors().iter().map(|tensor| tensor.numel);
        let memory = |bytes: i64| Guarded::new(bytes as usize, case.at_end);
        let floats = || {
            numels
                .clone()
                .map(|numel| memory(4 * numel))
                .collect::<Vec<_>>()
        };
        let buffers = || {
            plan.buffers()
                .iter()
                .map(|b| memory(b.bytes))
                .collect::<Vec<_>>()
        };
        let list = |of: &[Guarded]| of.iter().map(Guarded::buffer).collect::<Vec<_>>();
        let mut values = floats();
        let mut inputs: Vec<_> = (plan.tensors().iter())
            .map(|tensor| memory(tensor.numel * tensor.info.grad_dtype.size() as i64))
            .collect();
        for values in &mut values {
            let count = values.bytes / 4;
            let painted = (0..count).map(|i| case.paint.grad(i, &mut random));
            values.fill(&encode(
                painted.map(|x| if state == 0 { x } else { x.abs() }),
                Dtype::F32,
            ));
        }
        for (input, tensor) in inputs.iter_mut().zip(plan.tensors()) {
            let dtype = tensor.info.grad_dtype;
            let count = input.bytes / dtype.size();
            let painted = (0..count).map(|i| case.paint.grad(i, &mut random));
            input.fill(&encode(painted.map(f32::abs), dtype));
        }
        let (want, got) = (buffers(), buffers());
        let (want_values, got_values) = (floats(), floats());
        let null = std::ptr::null_mut();
        let args = |buffers, outputs| EmaArgs {
            inputs: list(&inputs).leak(),
            outputs,
            state: buffers,
            decay: 0.9,
            weight: 0.1,
            step: 3,
        };
        let of = |values, buffers| Codec {
            plan: &plan,
            state,
            step: 0,
            values,
            buffers,
        };
        let table = host.table.data.cast();
        let run = |codec: &Codec<'_>, direction, ema: Option<&EmaArgs<'_>>| {
            launch::codec(codec, direction, ema, &host.lists, table, &mut |work| {
                run(&work, 1);
                Ok(())
            })
        };
        let (values, want_list, got_list) = (list(&values), list(&want), list(&got));
        let (want_out, got_out) = (list(&want_values), list(&got_values));
        // SAFETY: host memory of the sizes that the plan says.
        unsafe {
            plan.compress(state, &values, &want_list, null).unwrap();
            run(&of(&values, &got_list), Direction::Compress, None).unwrap();
            plan.decompress(state, &want_list, &want_out, null).unwrap();
            run(&of(&got_out, &got_list), Direction::Decompress, None).unwrap();
        }
        let same = |what: &str| {
            let pairs = want
                .iter()
                .zip(&got)
                .chain(want_values.iter().zip(&got_values));
            for (i, (want, got)) in pairs.enumerate() {
                assert!(want.bytes() == got.bytes(), "{what}, buffer {i}: {case:?}");
            }
        };
        same("codes and values");
        // SAFETY: as above.
        unsafe { plan.ema(state, &args(&want_list, &want_out), null).unwrap() };
        let ema = args(&got_list, &got_out);
        let averaged = Codec {
            step: ema.step,
            ..of(&got_out, &got_list)
        };
        run(&averaged, Direction::Decompress, Some(&ema)).unwrap();
        run(&averaged, Direction::Compress, None).unwrap();
        same("averages");
    }
}

#[test]
fn norms_equal_the_reference() {
    let mut random = Random(10);
    for _ in 0..100 {
        let case = any_case(&mut random);
        let plan = case.plan();
        let host = Host::new(&plan, 3).unwrap();
        let (mut side, t) = (Side::new(&plan, &case), 1);
        side.paint(&case, t);
        let mut grads: Vec<_> = side.grads.iter().map(Guarded::buffer).collect();
        if random.below(3) == 0 {
            grads[0] = Buffer::NONE;
        }
        let (scratch, results) = (Guarded::new(24, true), Guarded::new(8, true));
        let args = NormArgs {
            grads: &grads,
            scratch: scratch.buffer(),
            grad_scale: 0.25,
            max_norm: 1.0,
        };
        // SAFETY: host memory of the sizes that the plan says.
        let want = unsafe { plan.norm(&args, std::ptr::null_mut()) }.unwrap();
        let mut enqueue = |work: Work<'_>| {
            run(&work, 1);
            Ok(())
        };
        let table = host.table.data.cast();
        for stage in [norm::Stage::Max, norm::Stage::Sum] {
            launch::norm(&plan, &args, stage, &host.lists, table, &mut enqueue).unwrap();
        }
        let result: *mut f32 = results.data.cast();
        launch::clip(&args, result, result.wrapping_add(1), &mut enqueue).unwrap();
        // SAFETY: two results.
        let got = unsafe { [*result, *result.add(1)] };
        assert_eq!(
            got.map(f32::is_nan),
            [want.norm, want.clip_factor].map(f32::is_nan)
        );
        if !want.norm.is_nan() {
            assert_eq!(got, [want.norm, want.clip_factor], "{case:?}");
        }
    }
}

#[test]
fn scalars_computed_on_the_device_equal_those_of_the_host() {
    let mut cases = Vec::new();
    let mut random = Random(7);
    let small = |hyper, first_step| Case {
        shapes: vec![vec![300], vec![]],
        in_memory: true,
        hyper,
        first_step,
        ..Case::default()
    };
    for first_step in [
        1,
        2,
        3,
        10,
        999,
        123_456,
        1 << 24,
        i32::MAX - 2,
        0,
        -5,
        i32::MIN,
    ] {
        for beta2 in [0.999, 0.95, 0.0, 0.999_999_9] {
            let hyper = Hyper {
                beta2,
                clip_factor: 0.3,
                grad_scale: 1.0 / 1024.0,
                ..Hyper::default()
            };
            cases.push(small(hyper, first_step));
        }
    }
    // Nobody checks what is in memory.
    for _ in 0..200 {
        let hyper = Hyper {
            lr: random.pattern(),
            beta1: random.value() * 2.0,
            beta2: random.value() * 2.0,
            eps: random.pattern(),
            weight_decay: random.pattern(),
            grad_scale: random.value(),
            clip_factor: random.pattern(),
            skip: 0.0,
        };
        cases.push(small(hyper, random.bits() as i32));
    }
    run_all(&cases);
}

#[test]
fn a_skipped_step_changes_nothing_and_is_counted() {
    let mut cases = Vec::new();
    for skip in [1.0, -1.0, f32::INFINITY, f32::from_bits(1)] {
        for in_memory in [false, true] {
            for output in [Output::InPlace, Output::Update] {
                cases.push(Case {
                    shapes: vec![vec![30, 257], vec![], vec![0], vec![4096]],
                    output,
                    in_memory,
                    hyper: Hyper {
                        skip,
                        ..Hyper::default()
                    },
                    wild_state: true,
                    ..Case::default()
                });
            }
        }
    }
    run_all(&cases);
}

#[test]
fn results_do_not_depend_on_the_number_of_thread_blocks() {
    let cases: Vec<_> = [0, 1, 2, 7, 64, u32::MAX]
        .into_iter()
        .map(|resident| Case {
            shapes: vec![vec![300, 257], vec![20_000]],
            param: Dtype::Bf16,
            grad: Dtype::Bf16,
            resident,
            ..Case::default()
        })
        .collect();
    run_all(&cases);
}

#[test]
fn models_of_many_tensors_are_cut_into_several_launches() {
    let case = Case {
        shapes: (0..1200).map(|i| vec![1 + i % 7]).collect(),
        groups: 3,
        spec: preset("adamw4"),
        ..Case::default()
    };
    let host = Host::new(&case.plan(), 100).unwrap();
    assert_eq!(host.lists.apply.len(), 3);
    case.run();
}

#[test]
fn roots_and_quotients_in_range_are_rounded_correctly() {
    // SAFETY: functions without pointers.
    unsafe {
        assert_eq!((SHIM.wrong_roots)(), 0);
        assert_eq!((SHIM.wrong_quotients)(20_000_000), 0);
    }
}

#[test]
fn limbs_by_shifts_equal_those_in_f64() {
    // SAFETY: functions without pointers.
    unsafe {
        assert_eq!((SHIM.wrong_limbs)(100), 0);
        assert_eq!((SHIM.wrong_warp_sums)(), 0);
    }
}

#[repr(C)]
struct CodesParams {
    books: [*const Codebook; 2],
    values: *const f32,
    scales: *const f32,
    codes: *mut u8,
    levels: *mut f32,
    count: usize,
}

/// Zeros, both ends, and every midpoint with its neighbours, two steps to either side.
fn around_midpoints(table: &Table, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0, -0.0, scale, -scale];
    for midpoint in &table.midpoints {
        let middle = midpoint * scale;
        let (down, up) = (middle.next_down(), middle.next_up());
        values.extend([middle, down, up, down.next_down(), up.next_up()]);
    }
    values
}

/// Scales of every size.
fn all_scales(random: &mut Random) -> Vec<f32> {
    let mut scales = vec![0.0, f32::from_bits(0x7fff_ffff), f32::MAX, 1.0, 3.0, 1e-30];
    for exponent in 0..255_u32 {
        for _ in 0..4 {
            scales.push(f32::from_bits(
                exponent << 23 | (random.bits() as u32 & 0x007f_ffff),
            ));
        }
        scales.push(f32::from_bits(exponent << 23));
        scales.push(f32::from_bits(exponent << 23 | 0x007f_ffff));
    }
    // The smallest, and both sides of where the estimates begin and end.
    scales.extend((1..200).map(f32::from_bits));
    for exponent in [-100, 100] {
        let border = 2.0_f32.powi(exponent).to_bits();
        scales.extend((border - 3..border + 3).map(f32::from_bits));
    }
    scales
}

#[test]
fn codes_at_every_midpoint_equal_their_definition() {
    let mut random = Random(11);
    let scales = all_scales(&mut random);
    let tables = [(Mapping::De, true), (Mapping::Linear, false)]
        .map(|(mapping, signed)| Table::of(mapping, 4, signed, &[]).unwrap());
    let books = tables.each_ref().map(|table| table::codebook(table));
    for (state, table) in tables.iter().enumerate() {
        let mut values = Vec::new();
        for scale in &scales {
            let mut block = around_midpoints(table, *scale);
            // No value is larger than its block's scale.
            block.retain(|x| scale.is_nan() || x.abs() <= *scale);
            block.resize_with(128, || random.value() * scale);
            values.extend(block);
        }
        let count = scales.len();
        let (mut codes, mut levels) = (vec![0_u8; 256 * count], vec![0_f32; 32 * count]);
        let params = CodesParams {
            books: books.each_ref().map(std::ptr::from_ref),
            values: values.as_ptr(),
            scales: scales.as_ptr(),
            codes: codes.as_mut_ptr(),
            levels: levels.as_mut_ptr(),
            count,
        };
        // SAFETY: buffers of the sizes that parts.cpp says.
        unsafe { (SHIM.codes)(&raw const params) };
        for (i, x) in values.iter().enumerate() {
            let scale = scales[i / 128];
            let above = table.midpoints.iter().filter(|mid| *x > *mid * scale);
            let (want, got) = (above.count(), codes[128 * count * state + i]);
            assert_eq!(
                usize::from(got),
                want,
                "state {state}, {x:e} at scale {scale:e}"
            );
        }
        for (i, scale) in scales.iter().enumerate() {
            for (code, level) in table.levels.iter().enumerate() {
                let (want, got) = (level * scale, levels[16 * (count * state + i) + code]);
                assert!(
                    want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()),
                    "state {state}, code {code} at scale {scale:e}: {want:e}, {got:e}"
                );
            }
        }
    }
    println!("{} values and scales per table", 128 * scales.len());
}

#[repr(C)]
struct OwnScalesParams {
    books: [*const Codebook; 2],
    values: *const f32,
    scales: *const f32,
    codes: *mut u8,
    count: usize,
}

/// The same of values that have scales of their own, as under rank-1 normalization.
#[test]
fn codes_under_own_scales_equal_their_definition() {
    let mut random = Random(12);
    let tables = [Mapping::Linear, Mapping::Power2]
        .map(|mapping| Table::of(mapping, 4, false, &[]).unwrap());
    let books = tables.each_ref().map(|table| table::codebook(table));
    // Those that are coded by estimates, and others.
    let mut pairs = [Vec::new(), Vec::new()];
    for scale in all_scales(&mut random) {
        let mut values = tables
            .each_ref()
            .map(|t| around_midpoints(t, scale))
            .concat();
        values.extend((0..20).map(|_| random.value() * scale));
        // No value is larger than its scale.
        values.retain(|x| scale.is_nan() || *x <= scale);
        let usual = |x| x >= 2.0_f32.powi(-100) && scale <= 2.0_f32.powi(100);
        for x in values {
            pairs[usize::from(!usual(x))].push((x, scale));
        }
    }
    for pairs in &mut pairs {
        // The four of a lane have other scales.
        for i in 1..pairs.len() {
            pairs.swap(i, random.below(i as u64 + 1) as usize);
        }
        pairs.resize(pairs.len().next_multiple_of(128), (1.0, 1.0));
    }
    let estimated = pairs[0].len();
    let (values, scales): (Vec<f32>, Vec<f32>) = pairs.concat().into_iter().unzip();
    let count = values.len();
    let mut codes = vec![0_u8; 2 * count];
    let params = OwnScalesParams {
        books: books.each_ref().map(std::ptr::from_ref),
        values: values.as_ptr(),
        scales: scales.as_ptr(),
        codes: codes.as_mut_ptr(),
        count,
    };
    // SAFETY: buffers of the sizes that parts.cpp says.
    unsafe { (SHIM.own_scales)(&raw const params) };
    for (table, codes) in tables.iter().zip(codes.chunks(count)) {
        for ((x, scale), got) in values.iter().zip(&scales).zip(codes) {
            let want = quant::nearest(*x, *scale, table);
            assert_eq!(*got, want, "{x:e} at scale {scale:e}");
        }
    }
    println!("{count} values and scales, {estimated} by estimates");
}

#[repr(C)]
struct DrawnCodesParams {
    book: *const Codebook,
    values: *const f32,
    draws: *const u16,
    scales: *const f32,
    codes: *mut u8,
    count: usize,
}

/// Codes rounded at random, at every level, around what draws decide, and at the ends of every cell
/// (`Nf4Table`).
#[test]
fn codes_by_draws_equal_their_definition() {
    let mut random = Random(14);
    let table = Table::of(Mapping::Nf4, 4, true, &[]).unwrap();
    let book = table::codebook(&table);
    let around = |x: f32| {
        let (down, up) = (x.next_down(), x.next_up());
        [x, down, up, down.next_down(), up.next_up()]
    };
    let (mut values, mut draws, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for scale in all_scales(&mut random) {
        let mut block = Vec::new();
        for (code, level) in table.levels.iter().enumerate() {
            let low = level * scale;
            block.extend(around(low).map(|x| (x, random.bits() as u16)));
            if let Some(next) = table.levels.get(code + 1) {
                let draw = random.bits() as u16;
                let decided = low + quant::uniform(draw) * (next * scale - low);
                block.extend(around(decided).map(|x| (x, draw)));
            }
        }
        for cell in -13..13 {
            let edge = (cell as f32 + 0.5) / 12.79 * scale;
            let ends = [edge.next_down(), edge, edge.next_up()];
            block.extend(ends.map(|x| (x, random.bits() as u16)));
        }
        // No value is larger than its block's scale.
        block.retain(|(x, _)| scale.is_nan() || x.abs() <= scale);
        assert!(block.len() < 256);
        block.resize_with(256, || (random.value() * scale, random.bits() as u16));
        for (x, draw) in block {
            values.push(x);
            draws.push(draw);
        }
        scales.extend([scale; 2]);
    }
    let mut codes = vec![0_u8; values.len()];
    let params = DrawnCodesParams {
        book: &raw const book,
        values: values.as_ptr(),
        draws: draws.as_ptr(),
        scales: scales.as_ptr(),
        codes: codes.as_mut_ptr(),
        count: scales.len(),
    };
    // SAFETY: buffers of the sizes that parts.cpp says.
    unsafe { (SHIM.drawn_codes)(&raw const params) };
    // Of another way to round.
    let preconditioner = Preconditioner {
        inv_bc2: 1.0,
        eps: 1.0,
    };
    for (i, x) in values.iter().enumerate() {
        let (scale, u) = (scales[i / 128], quant::uniform(draws[i]));
        let rounding = Rounding::Stochastic;
        let want = quant::stochastic(*x, scale, &table, rounding, preconditioner, u);
        assert_eq!(codes[i], want, "{x:e} at scale {scale:e}, {u} drawn");
    }
    println!("{} values and draws", values.len());
}

#[repr(C)]
struct ByteCodesParams {
    book: *const Codebook,
    values: *const f32,
    scales: *const f32,
    codes: *mut u8,
    levels: *mut f32,
    each: usize,
    count: usize,
}

/// The same of 8 bits; and the least and the largest value of every cell of the table (`ByteTable`).
#[test]
fn byte_codes_at_every_midpoint_equal_their_definition() {
    let mut random = Random(13);
    // Those that are usual; the others are coded by the definition.
    let mut scales = vec![1.0, 3.0, 2.0_f32.powi(-100), 2.0_f32.powi(100)];
    for exponent in (-99..100).step_by(7) {
        let significand = 1.0 + random.value().abs().min(1.0);
        scales.push(significand * 2.0_f32.powi(exponent));
    }
    for signed in [false, true] {
        let table = Table::of(Mapping::De, 8, signed, &[]).unwrap();
        let book = table::codebook(&table);
        let each = 16384;
        let mut values = Vec::new();
        for scale in &scales {
            let mut block = around_midpoints(&table, *scale);
            for exponent in -24..1 {
                for cell in 0..128 {
                    let edge = (1.0 + cell as f32 / 128.0) * 2.0_f32.powi(exponent) * 0.78 * scale;
                    let sign = if random.below(2) == 0 { 1.0 } else { -1.0 };
                    block.extend([edge.next_down() * sign, edge * sign, edge.next_up() * sign]);
                }
            }
            // No value is larger than its block's scale.
            block.retain(|x| x.abs() <= *scale);
            assert!(block.len() < each);
            block.resize_with(each, || random.value().clamp(-1.0, 1.0) * scale);
            values.extend(block);
        }
        let count = scales.len();
        let (mut codes, mut levels) = (vec![0_u8; each * count], vec![0_f32; 256 * count]);
        let params = ByteCodesParams {
            book: &raw const book,
            values: values.as_ptr(),
            scales: scales.as_ptr(),
            codes: codes.as_mut_ptr(),
            levels: levels.as_mut_ptr(),
            each,
            count,
        };
        // SAFETY: buffers of the sizes that parts.cpp says.
        unsafe { (SHIM.byte_codes)(&raw const params) };
        for (i, x) in values.iter().enumerate() {
            let scale = scales[i / each];
            let want = table.midpoints.iter().filter(|mid| *x > *mid * scale);
            assert_eq!(
                usize::from(codes[i]),
                want.count(),
                "signed: {signed}, {x:e} at scale {scale:e}"
            );
        }
        for (i, scale) in scales.iter().enumerate() {
            for (code, level) in table.levels.iter().enumerate() {
                let (want, got) = (level * scale, levels[256 * i + code]);
                assert_eq!(want.to_bits(), got.to_bits(), "code {code} at {scale:e}");
            }
        }
    }
}

// ---- planning ----------------------------------------------------------------------------------

fn plan(spec: &Spec, shape: &[i64]) -> Plan {
    let tensor = TensorInfo::new("w", shape, Dtype::F32);
    Plan::new(reference(), spec, vec![tensor]).unwrap()
}

#[test]
fn every_preset_has_kernels() {
    for name in Spec::PRESETS {
        Host::new(&plan(&preset(name), &[100, 100]), 1).unwrap();
    }
}

/// Presets whose common tensors have kernels of their own: optimizer and form of the states in their
/// names, and elements of a block.
const COMMON: [(&str, &str, &str, i64); 10] = [
    ("adamw4-block", "adamw", "block4", 128),
    ("adamw4", "adamw", "rank1", 128),
    ("adamw4-robust", "adamw", "robust", 128),
    ("adamw32", "adamw", "f32", 128),
    ("adamw8", "adamw", "block8", 256),
    ("sgdm8", "sgdm", "block8", 256),
    ("lion8", "lion", "block8", 256),
    ("sgdm4", "sgdm", "block4", 128),
    ("lion4", "lion", "block4", 128),
    ("factor4", "adamw", "factor4", 128),
];

#[test]
fn common_tensors_have_kernels_of_their_own() {
    for (name, optimizer, states, _) in COMMON {
        for (param, weights, grad) in FORMS {
            let case = Case {
                shapes: vec![vec![40, 257], vec![3, 5, 256]],
                param,
                weights,
                grad,
                spec: preset(name),
                ..Case::default()
            };
            let want = case.common_kernel(optimizer, states);
            assert_eq!(case.kernels(), [want.as_c_str()]);
        }
    }
    // More columns than those of two passes count in 32 bits.
    for name in ["adamw4", "adamw4-robust"] {
        let case = Case {
            shapes: vec![vec![2, 1 << 31]],
            spec: preset(name),
            ..Case::default()
        };
        assert_eq!(case.kernels(), [c"lowbit_k_adamw_any"]);
    }
}

/// Shards whose rows follow each other in the global tensor: offset, shape, global shape.
fn boxes_of_rows(block: i64, of_matrices: bool) -> Vec<[Vec<i64>; 3]> {
    let mut boxes = vec![
        // Rows: ragged, of whole blocks, of more than two axes.
        [vec![7, 0], vec![13, 257], vec![40, 257]],
        [vec![5, 0], vec![30, 4 * block], vec![64, 4 * block]],
        [vec![1, 0, 0], vec![2, 6, 300], vec![4, 6, 300]],
        [vec![2, 1, 0, 0], vec![1, 3, 5, 256], vec![4, 6, 5, 256]],
        // Columns: a warp's next block is some rows on, in the next one, in the same; ragged at the end.
        [vec![0, block], vec![40, block], vec![40, 4 * block]],
        [
            vec![0, 3 * block],
            vec![40, 6 * block],
            vec![40, 11 * block],
        ],
        [vec![0, block], vec![9, 24 * block], vec![9, 25 * block]],
        [
            vec![0, 8 * block],
            vec![9, block + 3],
            vec![9, 9 * block + 3],
        ],
        // Both, and of a row alone.
        [vec![3, 2 * block], vec![17, 4 * block], vec![33, 8 * block]],
        [
            vec![2, 9, block],
            vec![1, 1, 3 * block],
            vec![4, 11, 5 * block],
        ],
    ];
    if !of_matrices {
        boxes.extend([
            // Flat, and rows that are merged until they hold a block.
            [vec![4096], vec![8197], vec![4096 + 8197]],
            [vec![64 * block], vec![3 * block], vec![70 * block + 9]],
            [vec![4 * block, 0], vec![5 * block, 3], vec![10 * block, 3]],
            // Beyond what random numbers count to.
            [vec![(1 << 32) - 2, 0], vec![5, 300], vec![1 << 33, 300]],
            [
                vec![1, (1 << 35) - 2 * block],
                vec![2, 5 * block],
                vec![3, 1 << 36],
            ],
        ]);
    }
    boxes
}

#[test]
fn shards_of_rows_equal_the_reference_in_kernels_for_common_tensors() {
    let mut cases = Vec::new();
    for (name, optimizer, states, block) in COMMON {
        let boxes = boxes_of_rows(block, ["rank1", "robust", "factor4"].contains(&states));
        let spec = preset(name);
        let draws = spec.m.as_ref().unwrap().rounding == Rounding::Stochastic;
        for (number, (param, weights, grad)) in FORMS.into_iter().enumerate() {
            if !draws && weights != Weights::Stochastic {
                continue;
            }
            for (at_end, staged) in [(false, number % 2 == 0), (true, number % 2 == 1)] {
                let case = Case {
                    shapes: boxes.iter().map(|[_, shape, _]| shape.clone()).collect(),
                    boxes: (boxes.iter())
                        .map(|[offset, _, global]| [offset.clone(), global.clone()])
                        .collect(),
                    param,
                    weights,
                    grad,
                    spec: spec.clone(),
                    first_step: 7,
                    at_end,
                    staged,
                    ..Case::default()
                };
                let want = case.common_kernel(optimizer, states);
                assert_eq!(case.kernels(), [want.as_c_str()]);
                cases.push(case);
            }
        }
    }
    run_all(&cases);
}

#[test]
fn shards_of_other_boxes_equal_the_reference_in_kernels_for_any_tensor() {
    let mut cases = Vec::new();
    for (name, optimizer, states, _) in COMMON {
        let any = match optimizer {
            "adamw" if states == "factor4" => c"lowbit_k_adamw_factored",
            "adamw" => c"lowbit_k_adamw_any",
            "sgdm" => c"lowbit_k_sgdm",
            _ => c"lowbit_k_lion",
        };
        let case = Case {
            shapes: vec![vec![2, 3, 256]],
            boxes: vec![[vec![1, 2, 256], vec![4, 6, 512]]],
            param: Dtype::Bf16,
            weights: Weights::Stochastic,
            spec: preset(name),
            ..Case::default()
        };
        assert_eq!(case.kernels(), [any]);
        cases.push(case);
    }
    run_all(&cases);
}

#[test]
fn shards_that_are_moved_equal_the_reference() {
    let mut cases = Vec::new();
    for name in PRESETS {
        for (number, &(param, weights, grad)) in forms(name).iter().enumerate() {
            cases.push(Case {
                shapes: vec![
                    vec![40, 257],
                    vec![4096],
                    vec![7, 1400],
                    vec![1, 3, 5, 256],
                    vec![64, 3, 4],
                    vec![9],
                ],
                param,
                weights,
                grad,
                spec: preset(name),
                staged: number % 2 == 1,
                moved: true,
                ..Case::default()
            });
        }
    }
    // More than one launch has words for the places of.
    cases.push(Case {
        shapes: (0..500).map(|i| vec![2 + i % 2, 128]).collect(),
        groups: 3,
        spec: preset("adamw4"),
        moved: true,
        ..Case::default()
    });
    for case in &cases {
        let shards = case
            .plan()
            .tensors()
            .iter()
            .filter(|t| t.is_shard())
            .count();
        let whole = case.shapes.iter().filter(|shape| **shape == [9]).count();
        assert_eq!(shards, case.shapes.len() - whole, "{case:?}");
    }
    run_all(&cases);
}

/// Tasks of two passes of 256, 64 and 32 rows, the last ones short, whose warps have a row each or share them.
#[test]
fn tall_tasks_of_two_passes_equal_the_reference() {
    let boxes = [
        [vec![7, 0], vec![300, 257], vec![400, 257]],
        [vec![0, 128], vec![531, 128], vec![531, 384]],
        [vec![0, 0], vec![270, 1152], vec![270, 1152]],
        [vec![1, 0, 0], vec![3, 107, 520], vec![5, 107, 520]],
    ];
    let mut cases = Vec::new();
    for name in ["adamw4", "adamw4-robust"] {
        for (resident, rows) in [(1, 256), (9, 64), (100, 32)] {
            let case = Case {
                shapes: boxes.iter().map(|[_, shape, _]| shape.clone()).collect(),
                boxes: (boxes.iter())
                    .map(|[offset, _, global]| [offset.clone(), global.clone()])
                    .collect(),
                param: Dtype::Bf16,
                grad: Dtype::Bf16,
                weights: Weights::Stochastic,
                spec: preset(name),
                staged: resident == 9,
                resident,
                ..Case::default()
            };
            let host = Host::new(&case.plan(), resident).unwrap();
            let tasks = [(300, 2), (531, 1), (270, 2), (321, 2)]
                .map(|(all, across)| div_ceil(all, rows) * across);
            assert_eq!(
                host.lists.collect_fusible[0].tasks,
                tasks.iter().sum::<i64>()
            );
            cases.push(case);
        }
    }
    run_all(&cases);
}

#[test]
fn new_scales_of_several_tasks_reach_the_states() {
    let mut cases = Vec::new();
    for name in ["adamw4", "adafactor"] {
        let case = Case {
            shapes: vec![vec![2, 4100], vec![4, 9]],
            spec: preset(name),
            resident: 2,
            ..Case::default()
        };
        let host = Host::new(&case.plan(), case.resident).unwrap();
        assert_eq!(host.lists.finish[0].tasks, 3 + 1, "{name}");
        cases.push(case);
    }
    run_all(&cases);
}

#[test]
fn tasks_of_two_passes_are_as_tall_as_leaves_one_for_each_thread_block() {
    for (shape, tasks) in [
        ([8192, 8192], 32 * 8),
        ([4096, 4096], 64 * 4),
        ([4096, 11_008], 32 * 11),
        ([1 << 20, 128], 1 << 12),
        ([1024, 1024], 32),
    ] {
        let plan = plan(&preset("adamw4"), &shape);
        let (_, lists) = table::build(plan.spec(), plan.tensors(), &|_| Ok(264)).unwrap();
        assert_eq!(lists.collect_fusible[0].tasks, tasks, "{shape:?}");
        assert_eq!(lists.fused[0].tasks, 2 * tasks);
    }
}

#[test]
fn launches_of_huge_tensors_do_not_wrap() {
    let plan = plan(&preset("adamw4-block"), &[70_000, 70_001]);
    let (_, lists) = table::build(plan.spec(), plan.tensors(), &|_| Ok(1056)).unwrap();
    assert_eq!(lists.apply[0].grid, 1056);
    assert_eq!(lists.apply[0].tasks, 70_000 * 547 / 64 + 1);
}

#[test]
fn tiles_have_256_rows_or_more_columns_and_many_are_taller() {
    for (shape, tasks) in [
        ([70_000, 70_001], 69 * 547),
        ([256, 256], 2),
        ([256, 384], 3),
        ([513, 384], 6),
        ([2048, 256], 4),
        ([255, 4096], 32),
        ([64, 4096], 8),
        ([2, 4097], 5),
    ] {
        let plan = plan(&preset("adafactor"), &shape);
        let (_, lists) = table::build(plan.spec(), plan.tensors(), &|_| Ok(1056)).unwrap();
        let (collect, sum) = (&lists.collect_global[0], &lists.sums[0]);
        assert_eq!([collect.tasks, sum.tasks], [tasks; 2], "{shape:?}");
        assert_eq!(lists.update_maxima[0].tasks, tasks);
    }
}
