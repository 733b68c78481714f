//! The kernels on the host, bit for bit against the reference.
//!
//! `tests/cuda/shim.hpp` lets the `.cu` files compile as C++ with g++. The launches and parameters
//! are those that the device would get; the buffers lie between unmapped pages.

use std::ffi::{CStr, CString, c_void};
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use super::kernels::{KERNELS, Kernel, Launch, THREADS};
use super::params::AdamwParams;
use super::scalars;
use crate::backend::{Context, CpuContext, Variant};
use crate::dtype::Dtype;
use crate::error::Status;
use crate::numerics::{Hyper, Scalars};
use crate::plan::{Format, Plan, TensorInfo};
use crate::quant::{Mapping, Table};
use crate::spec::{Optimizer, Override, Quantizer, Spec};
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};

// ---- the shim ----------------------------------------------------------------------------------

type KernelFn = unsafe extern "C" fn(AdamwParams);

struct Shim {
    adamw: unsafe extern "C" fn(KernelFn, u32, u32, *const AdamwParams, u64),
    codes: unsafe extern "C" fn(*const CodesParams),
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
        let library = dir.path().join("libkernels.so");
        let status = Command::new("g++")
            .args(["-std=c++17", "-O2", "-g", "-fPIC", "-shared"])
            .args(["-Wall", "-Wextra", "-Werror", "-ffp-contract=off"])
            .args(["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"])
            .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
            .arg("-I")
            .arg(root.join("cuda"))
            .arg("-o")
            .args([&library, &root.join("tests/cuda/kernels.cpp")])
            .status()
            .unwrap();
        assert!(status.success(), "the kernels do not compile as C++");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: our own library, without initialisers; the types are those of kernels.cpp.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            let symbol = |name: &CStr| {
                let address = libc::dlsym(handle, name.as_ptr());
                assert!(!address.is_null(), "no symbol {name:?}");
                address
            };
            Self {
                adamw: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(KernelFn, u32, u32, *const AdamwParams, u64),
                >(symbol(c"shim_adamw")),
                codes: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const CodesParams)>(
                    symbol(c"shim_codes"),
                ),
                layout: symbol(c"shim_adamw_layout").cast(),
                kernels: KERNELS
                    .iter()
                    .map(|(_, name)| std::mem::transmute::<*mut c_void, KernelFn>(symbol(name)))
                    .collect(),
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
    /// Any bits at all.
    Wild,
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
            Self::Wild => random.pattern(),
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
        // bf16 is truncated, so that any pattern of the upper half can come.
        bytes.extend_from_slice(&x.to_le_bytes()[4 - dtype.size()..]);
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
    preset: &'static str,
    output: Output,
    nonfinite: NonFinite,
    paint: Paint,
    /// Hyper-parameters in memory.
    in_memory: bool,
    hyper: Hyper,
    first_step: i32,
    /// Buffers end at an unmapped page (so that most are not aligned), or begin at one.
    at_end: bool,
    /// States are any bytes at first.
    wild_state: bool,
    /// Thread blocks that the imagined device holds.
    resident: u32,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            shapes: vec![vec![4097]],
            param: Dtype::F32,
            grad: Dtype::F32,
            preset: "adamw4-block",
            output: Output::InPlace,
            nonfinite: NonFinite::Default,
            paint: Paint::Plain,
            in_memory: false,
            hyper: Hyper::default(),
            first_step: 1,
            at_end: false,
            wild_state: false,
            resident: 3,
        }
    }
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
            scratch: memory(plan.scratch_bytes()),
            hyper: memory(4 * Hyper::COUNT as i64),
            step: memory(4),
            skipped: memory(16),
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
        let h = &case.hyper;
        let hyper = [
            h.lr,
            h.beta1,
            h.beta2,
            h.eps,
            h.weight_decay,
            h.grad_scale,
            h.clip_factor,
            h.skip,
        ];
        self.hyper.fill(&encode(hyper, Dtype::F32));
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
        body(&StepArgs {
            params: &params,
            grads: &grads,
            updates: updates.as_deref(),
            state: &state,
            scratch: self.scratch.buffer(),
            hyper: if case.in_memory {
                HyperSource::Memory {
                    hyper: self.hyper.data.cast(),
                    step: self.step.data.cast(),
                }
            } else {
                HyperSource::Host(std::slice::from_ref(&case.hyper), t)
            },
            nonfinite: case.nonfinite,
            offsets: None,
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
            .chain([("skipped", 0, &self.skipped)])
    }
}

fn reference() -> Arc<Context> {
    Arc::new(Context::Cpu(
        CpuContext::new(1, Variant::Reference).unwrap(),
    ))
}

impl Case {
    fn plan(&self) -> Plan {
        let mut spec = Spec::preset(self.preset).unwrap();
        // So that small tensors have codes.
        spec.threshold = 0;
        let tensors = self.shapes.iter().enumerate().map(|(i, shape)| TensorInfo {
            grad_dtype: self.grad,
            ..TensorInfo::new(format!("t{i}"), shape, self.param)
        });
        Plan::new(reference(), &spec, tensors.collect()).unwrap()
    }

    /// Three steps on both sides, each compared. Returns how many elements were.
    fn run(&self) -> i64 {
        let plan = self.plan();
        let launches = super::schedule(plan.spec(), plan.tensors(), |_| self.resident)
            .unwrap()
            .launches;
        let (mut want, mut got) = (Side::new(&plan, self), Side::new(&plan, self));
        for t in self.first_step..self.first_step.saturating_add(3) {
            want.paint(self, t);
            got.paint(self, t);
            want.with_args(self, t, |args| {
                // SAFETY: host memory of the sizes that the plan says.
                unsafe { plan.step(args, Stage::All, std::ptr::null_mut()) }.unwrap();
            });
            got.with_args(self, t, |args| {
                let scalars = scalars(&args.hyper);
                for (i, (launch, tensor)) in launches.iter().zip(plan.tensors()).enumerate() {
                    let params = launch.params(tensor, i, args, &scalars);
                    // SAFETY: as above; the kernel's own parameters.
                    unsafe {
                        (SHIM.adamw)(
                            SHIM.kernels[launch.kernel.0],
                            launch.grid,
                            THREADS,
                            &raw const params,
                            u64::from(t.cast_unsigned()),
                        );
                    }
                }
            });
            for ((name, i, want), (_, _, got)) in want.all().zip(got.all()) {
                let (want, got) = (want.bytes(), got.bytes());
                if want != got {
                    let at = (0..want.len()).find(|&at| want[at] != got[at]).unwrap() & !3;
                    let (want, got) = (want[at..].chunks(4).next(), got[at..].chunks(4).next());
                    panic!(
                        "{name}[{i}] differs at byte {at} in step {t}: {want:02x?} wanted, \
                         {got:02x?} got; {self:?}"
                    );
                }
            }
        }
        3 * plan
            .tensors()
            .iter()
            .map(|tensor| tensor.numel)
            .sum::<i64>()
    }
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

const DTYPES: [(Dtype, Dtype); 4] = [
    (Dtype::F32, Dtype::F32),
    (Dtype::F32, Dtype::Bf16),
    (Dtype::Bf16, Dtype::F32),
    (Dtype::Bf16, Dtype::Bf16),
];

const PRESETS: [&str; 2] = ["adamw4-block", "adamw32"];

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
    ]);
    shapes
}

// ---- tests -------------------------------------------------------------------------------------

#[test]
fn params_layout_is_that_of_the_kernels() {
    let scalar = |offset| offset_of!(AdamwParams, scalars) + offset;
    let want = [
        size_of::<AdamwParams>(),
        offset_of!(AdamwParams, param),
        offset_of!(AdamwParams, grad),
        offset_of!(AdamwParams, update),
        offset_of!(AdamwParams, m),
        offset_of!(AdamwParams, v),
        offset_of!(AdamwParams, m_scales),
        offset_of!(AdamwParams, v_scales),
        offset_of!(AdamwParams, hyper),
        offset_of!(AdamwParams, step),
        offset_of!(AdamwParams, skipped),
        offset_of!(AdamwParams, rows),
        offset_of!(AdamwParams, cols),
        offset_of!(AdamwParams, blocks),
        scalar(offset_of!(Scalars, beta1)),
        scalar(offset_of!(Scalars, one_minus_beta1)),
        scalar(offset_of!(Scalars, beta2)),
        scalar(offset_of!(Scalars, one_minus_beta2)),
        scalar(offset_of!(Scalars, eps)),
        scalar(offset_of!(Scalars, lr_bc1)),
        scalar(offset_of!(Scalars, lr_wd)),
        scalar(offset_of!(Scalars, inv_sqrt_bc2)),
        scalar(offset_of!(Scalars, grad_scale)),
        scalar(offset_of!(Scalars, skip)),
        offset_of!(AdamwParams, skip_blocks),
        offset_of!(AdamwParams, wide),
    ];
    // SAFETY: an array of as many numbers.
    let got = unsafe { std::slice::from_raw_parts(SHIM.layout, want.len()) };
    assert_eq!(got, want);
}

#[test]
fn every_shape_dtype_and_output_equals_the_reference() {
    let mut cases = Vec::new();
    for preset in PRESETS {
        for (param, grad) in DTYPES {
            for output in [Output::InPlace, Output::Update, Output::OverGrad] {
                if output == Output::OverGrad && param != grad {
                    continue;
                }
                for at_end in [false, true] {
                    cases.push(Case {
                        shapes: shapes(),
                        param,
                        grad,
                        preset,
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
    for preset in PRESETS {
        for (param, grad) in DTYPES {
            for paint in [Paint::Scales, Paint::NonFinite, Paint::Wild] {
                for nonfinite in [
                    NonFinite::Default,
                    NonFinite::SkipBlock,
                    NonFinite::Propagate,
                ] {
                    for output in [Output::InPlace, Output::Update] {
                        cases.push(Case {
                            shapes: vec![vec![2048], vec![6, 1001], vec![257]],
                            param,
                            grad,
                            preset,
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

#[repr(C)]
struct CodesParams {
    values: *const f32,
    scales: *const f32,
    codes: *mut u8,
    levels: *mut f32,
    count: usize,
}

/// Every midpoint and its neighbours, two steps to either side, for scales of every size.
#[test]
fn codes_at_every_midpoint_equal_their_definition() {
    let mut random = Random(11);
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
    // The smallest, and both sides of where the linear table's arithmetic begins.
    scales.extend((1..200).map(f32::from_bits));
    let border = 2.0_f32.powi(-120).to_bits();
    scales.extend((border - 3..border + 3).map(f32::from_bits));

    let tables = [(Mapping::De, true), (Mapping::Linear, false)]
        .map(|(mapping, signed)| Table::of(mapping, 4, signed, &[]).unwrap());
    for table in &tables {
        let mut values = Vec::new();
        for scale in &scales {
            let mut block = vec![0.0, -0.0, *scale, -scale];
            for midpoint in &table.midpoints {
                let middle = midpoint * scale;
                let (down, up) = (middle.next_down(), middle.next_up());
                block.extend([middle, down, up, down.next_down(), up.next_up()]);
            }
            // No value is larger than its block's scale.
            block.retain(|x| scale.is_nan() || x.abs() <= *scale);
            block.resize_with(128, || random.value() * scale);
            values.extend(block);
        }
        let count = scales.len();
        let (mut codes, mut levels) = (vec![0_u8; 256 * count], vec![0_f32; 32 * count]);
        let params = CodesParams {
            values: values.as_ptr(),
            scales: scales.as_ptr(),
            codes: codes.as_mut_ptr(),
            levels: levels.as_mut_ptr(),
            count,
        };
        // SAFETY: buffers of the sizes that kernels.cpp says.
        unsafe { (SHIM.codes)(&raw const params) };
        for (state, coded) in tables.iter().enumerate() {
            for (i, x) in values.iter().enumerate() {
                let scale = scales[i / 128];
                let above = coded.midpoints.iter().filter(|mid| *x > *mid * scale);
                let (want, got) = (above.count(), codes[128 * count * state + i]);
                assert_eq!(
                    usize::from(got),
                    want,
                    "state {state}, {x:e} at scale {scale:e}"
                );
            }
            for (i, scale) in scales.iter().enumerate() {
                for (code, level) in coded.levels.iter().enumerate() {
                    let (want, got) = (level * scale, levels[16 * (count * state + i) + code]);
                    assert!(
                        want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()),
                        "state {state}, code {code} at scale {scale:e}: {want:e}, {got:e}"
                    );
                }
            }
        }
    }
    println!("{} values and scales per table", 128 * scales.len());
}

// ---- planning ----------------------------------------------------------------------------------

fn plan(spec: &Spec, shape: &[i64]) -> Plan {
    let tensor = TensorInfo::new("w", shape, Dtype::F32);
    Plan::new(reference(), spec, vec![tensor]).unwrap()
}

#[test]
fn a_state_without_a_kernel_is_refused_with_its_name() {
    let block4 = Spec::preset("adamw4-block").unwrap();
    let cases = [
        (Spec::preset("adamw4").unwrap(), "v 4-bit rank1/linear"),
        (
            Spec {
                v: Some(Quantizer::block(128, Mapping::De)),
                ..block4.clone()
            },
            "v 4-bit block(128)/de",
        ),
        (
            Spec {
                m: Some(Quantizer::block(256, Mapping::De)),
                ..block4.clone()
            },
            "m 4-bit block(256)/de",
        ),
        (
            Spec {
                overrides: vec![Override {
                    pattern: "*".into(),
                    m: Some(Quantizer::f32()),
                    v: None,
                    x: None,
                }],
                ..block4
            },
            "m f32",
        ),
        (
            Spec {
                x: Some(Quantizer::f32()),
                ..Spec::new(Optimizer::None)
            },
            "none for none",
        ),
    ];
    for (spec, part) in cases {
        let plan = plan(&spec, &[100, 100]);
        let error = super::schedule(&spec, plan.tensors(), |_| 1).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn policies_without_a_kernel_are_refused() {
    let case = Case::default();
    let side = Side::new(&case.plan(), &case);
    for nonfinite in [NonFinite::SkipTensor, NonFinite::SkipStep] {
        let error = side.with_args(&case, 1, |args| {
            super::kernels::check(&StepArgs { nonfinite, ..*args }).unwrap_err()
        });
        assert_eq!(error.status(), Status::Unsupported);
    }
}

#[test]
fn kernel_names_say_what_they_take() {
    for preset in PRESETS {
        for (param, grad) in DTYPES {
            let case = Case {
                param,
                grad,
                preset,
                ..Case::default()
            };
            let plan = case.plan();
            let tensor = &plan.tensors()[0];
            let Kernel(index) = Launch::new(tensor, |_| 1).unwrap().kernel;
            let (module, symbol) = KERNELS[index];
            let states = match tensor.states[0].format {
                Format::F32 => "f32",
                _ => "block4",
            };
            assert_eq!(module, format!("adamw_{states}"));
            let (param, grad) = (param.name(), grad.name());
            let want = format!("lowbit_k_adamw_{param}_{grad}_{states}");
            assert_eq!(symbol.to_str().unwrap(), want);
        }
    }
}

#[test]
fn launches_of_huge_tensors_do_not_wrap() {
    let plan = plan(&Spec::preset("adamw4-block").unwrap(), &[70_000, 70_001]);
    let launch = Launch::new(&plan.tensors()[0], |_| 1056).unwrap();
    assert_eq!(launch.grid, 1056);
    let launch = Launch::new(&plan.tensors()[0], |_| u32::MAX).unwrap();
    assert_eq!(launch.grid, 70_000 * 547 / 8);
}
