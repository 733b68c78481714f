//! What the integration tests share: the generator of `README.md` and a model on host memory.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(unreachable_pub, reason = "one file for all tests")]
#![allow(unsafe_code, reason = "steps work on raw buffers")]

use std::sync::Arc;

use lowbit::dtype::Dtype;
use lowbit::error::Result;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};
use lowbit::weights::Weights;
use lowbit::{Context, CpuContext, Hyper, Variant};

/// See `README.md`.
pub fn word(stream: u64, index: u64) -> u64 {
    let mut x = (stream << 40)
        .wrapping_add(index)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn number(h: u64, exponent: i32) -> f32 {
    let n = i32::try_from(h >> 40).unwrap() - (1 << 23);
    // 24 significant bits times a power of two: exact.
    (f64::from(n) * f64::from(exponent).exp2()) as f32
}

/// Element of a parameter.
pub fn param(stream: u64, index: u64) -> f32 {
    number(word(stream, index), -27)
}

/// Element of a gradient.
pub fn grad(stream: u64, index: u64) -> f32 {
    let h = word(stream, index);
    if (index / 512) % 5 == 4 {
        0.0
    } else {
        number(h, -23 - i32::try_from(h & 15).unwrap())
    }
}

/// The shapes of the conformance cases.
pub const SHAPES: [&[i64]; 7] = [
    &[1],
    &[4096],
    &[4097],
    &[300, 257],
    &[64, 3, 3, 3],
    &[512, 1024],
    &[2, 3, 5, 7, 11],
];

/// Values as the bytes of a dtype; bf16 and f16 by truncation.
pub fn bytes(values: impl Iterator<Item = f32>, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => values
            .flat_map(|x| u16::try_from(x.to_bits() >> 16).unwrap().to_le_bytes())
            .collect(),
        Dtype::F16 => values.flat_map(|x| f16(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}

/// The upper 11 significant bits of a value as an f16; 0 below 2^-14 (see `README.md`).
pub fn f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = u16::try_from(bits >> 31).unwrap() << 15;
    let exponent = i32::try_from(bits >> 23 & 0xff).unwrap() - 112;
    if exponent < 1 {
        return sign;
    }
    assert!(exponent < 31, "the generator makes no large numbers");
    let fraction = u16::try_from(bits >> 13 & 0x3ff).unwrap();
    sign | u16::try_from(exponent).unwrap() << 10 | fraction
}

/// The f32 values of bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// Memory aligned for any dtype, so that `Vec<u8>`'s alignment of 1 does not matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    words: Vec<u64>,
    pub bytes: usize,
}

impl Memory {
    pub fn zeroed(bytes: usize) -> Self {
        Self {
            words: vec![0; bytes.div_ceil(8)],
            bytes,
        }
    }

    pub fn from(bytes: &[u8]) -> Self {
        let mut memory = Self::zeroed(bytes.len());
        memory.as_mut().copy_from_slice(bytes);
        memory
    }

    pub fn as_ref(&self) -> &[u8] {
        // SAFETY: plain integers, initialised.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes) }
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.bytes) }
    }

    pub fn buffer(&self) -> Buffer {
        Buffer {
            data: self.words.as_ptr().cast_mut().cast(),
            bytes: self.bytes as i64,
        }
    }
}

/// A plan with all memory of a trainer.
pub struct Model {
    pub plan: Plan,
    pub params: Vec<Memory>,
    pub grads: Vec<Memory>,
    pub updates: Option<Vec<Memory>>,
    /// Whether updates take the place of the gradients.
    pub updates_in_grads: bool,
    pub state: Vec<Memory>,
    pub scratch: Memory,
    pub hyper: Hyper,
    pub step: i32,
    pub nonfinite: NonFinite,
    pub skipped: [i64; 2],
}

impl Model {
    /// Zero states and zero tensors.
    pub fn new(variant: Variant, threads: usize, spec: &Spec, tensors: Vec<TensorInfo>) -> Self {
        Self::in_context(CpuContext::new(threads, variant).unwrap(), spec, tensors).unwrap()
    }

    pub fn in_context(cpu: CpuContext, spec: &Spec, tensors: Vec<TensorInfo>) -> Result<Self> {
        Plan::new(Arc::new(Context::Cpu(cpu)), spec, tensors).map(Self::of)
    }

    pub fn of(plan: Plan) -> Self {
        let sized = |dtype: fn(&TensorInfo) -> Dtype| -> Vec<Memory> {
            let tensors = plan.tensors().iter();
            tensors
                .map(|t| Memory::zeroed(usize::try_from(t.numel).unwrap() * dtype(&t.info).size()))
                .collect()
        };
        Self {
            params: sized(|info| info.param_dtype),
            grads: sized(|info| info.grad_dtype),
            updates: None,
            updates_in_grads: false,
            state: plan
                .buffers()
                .iter()
                .map(|b| Memory::zeroed(b.bytes as usize))
                .collect(),
            scratch: Memory::zeroed(plan.scratch_bytes() as usize),
            hyper: Hyper::default(),
            step: 0,
            nonfinite: NonFinite::Default,
            skipped: [0; 2],
            plan,
        }
    }

    /// Fills the parameters of every tensor from its stream.
    pub fn fill_params(&mut self) {
        for (i, (memory, tensor)) in self.params.iter_mut().zip(self.plan.tensors()).enumerate() {
            let values = (0..tensor.numel as u64).map(|j| param(i as u64, j));
            memory
                .as_mut()
                .copy_from_slice(&bytes(values, tensor.info.param_dtype));
        }
    }

    /// Fills the gradients of step `t`.
    pub fn fill_grads(&mut self, t: u64) {
        for (i, (memory, tensor)) in self.grads.iter_mut().zip(self.plan.tensors()).enumerate() {
            let values = (0..tensor.numel as u64).map(|j| grad(1000 * t + i as u64, j));
            memory
                .as_mut()
                .copy_from_slice(&bytes(values, tensor.info.grad_dtype));
        }
    }

    /// Room for updates: the step then leaves the parameters alone.
    pub fn with_updates(mut self) -> Self {
        self.updates = Some(
            self.params
                .iter()
                .map(|p| Memory::zeroed(p.bytes))
                .collect(),
        );
        self
    }

    /// One step with the gradients as they are.
    pub fn run(&mut self) -> Result<()> {
        self.step += 1;
        self.stage(Stage::All, None)
    }

    pub fn stage(&mut self, stage: Stage, offsets: Option<&[Option<&[i64]>]>) -> Result<()> {
        let list = |memory: &[Memory]| memory.iter().map(Memory::buffer).collect::<Vec<_>>();
        let (params, grads, state) = (list(&self.params), list(&self.grads), list(&self.state));
        let own = self.updates_in_grads.then_some(self.grads.as_slice());
        let updates = own.or(self.updates.as_deref()).map(list);
        let hyper = vec![self.hyper; self.plan.groups()];
        let args = StepArgs {
            params: &params,
            grads: &grads,
            updates: updates.as_deref(),
            state: &state,
            scratch: self.scratch.buffer(),
            hyper: HyperSource::Host(&hyper, self.step),
            nonfinite: self.nonfinite,
            offsets,
            skipped: self.skipped.as_mut_ptr(),
        };
        // SAFETY: all memory is this model's.
        unsafe { self.plan.step(&args, stage, std::ptr::null_mut()) }
    }

    /// A state as f32 values, tensor by tensor.
    pub fn decompress(&self, state: usize) -> Vec<Vec<f32>> {
        let values: Vec<Memory> = self
            .plan
            .tensors()
            .iter()
            .map(|t| Memory::zeroed(t.numel as usize * 4))
            .collect();
        let buffers = self.buffers();
        let outputs: Vec<_> = values.iter().map(Memory::buffer).collect();
        // SAFETY: all memory is this model's.
        unsafe {
            self.plan
                .decompress(state, &buffers, &outputs, std::ptr::null_mut())
                .unwrap();
        }
        values
            .iter()
            .map(|memory| floats(memory.as_ref()))
            .collect()
    }

    /// Quantizes values into a state.
    pub fn compress(&mut self, state: usize, values: &[Vec<f32>]) -> Result<()> {
        let values: Vec<Memory> = values
            .iter()
            .map(|v| Memory::from(&bytes(v.iter().copied(), Dtype::F32)))
            .collect();
        let inputs: Vec<_> = values.iter().map(Memory::buffer).collect();
        let buffers = self.buffers();
        // SAFETY: all memory is this model's.
        unsafe {
            self.plan
                .compress(state, &inputs, &buffers, std::ptr::null_mut())
        }
    }

    /// All state buffers.
    pub fn buffers(&self) -> Vec<Buffer> {
        self.state.iter().map(Memory::buffer).collect()
    }

    /// A state buffer by name.
    pub fn buffer(&self, tensor: usize, state: &str, part: &str) -> &[u8] {
        let found = self
            .plan
            .buffers()
            .iter()
            .position(|b| b.tensor == tensor && b.state == state && b.part == part);
        self.state[found.unwrap_or_else(|| panic!("no {state}/{part}"))].as_ref()
    }
}

/// Every variant that this processor can run.
pub fn variants() -> Vec<Variant> {
    [
        Variant::Reference,
        Variant::Portable,
        Variant::Avx2,
        Variant::Avx512,
    ]
    .into_iter()
    .filter(|variant| match CpuContext::new(1, *variant) {
        Ok(_) => true,
        Err(error) => {
            println!("not run here: {variant:?}: {error}");
            false
        }
    })
    .collect()
}

/// The presets of AdamW whose states are rounded to nearest.
pub const ADAMW: [&str; 3] = ["adamw32", "adamw4", "adamw4-block"];

/// One line of `cases.txt`: see `README.md`.
pub struct Case {
    pub name: String,
    pub param: Dtype,
    pub grad: Dtype,
    pub weights: Weights,
    pub steps: u64,
    pub spec: Spec,
}

/// The conformance cases.
pub fn cases() -> Vec<Case> {
    let dtype = |name: &str| match name {
        "f32" => Dtype::F32,
        "bf16" => Dtype::Bf16,
        "f16" => Dtype::F16,
        other => panic!("dtype {other}"),
    };
    let weights = [
        Weights::Plain,
        Weights::Stochastic,
        Weights::Master,
        Weights::Remainder16,
        Weights::Correction8,
    ];
    let case = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let [name, param, grad, form, steps, spec] = fields[..] else {
            panic!("cases.txt: {line}");
        };
        Case {
            name: name.to_owned(),
            param: dtype(param),
            grad: dtype(grad),
            weights: *weights
                .iter()
                .find(|weights| weights.name() == form)
                .unwrap(),
            steps: steps.parse().unwrap(),
            spec: Spec::from_json(spec).unwrap(),
        }
    };
    include_str!("cases.txt").lines().map(case).collect()
}

/// The tensors of the conformance cases.
pub fn tensors(param_dtype: Dtype, grad_dtype: Dtype) -> Vec<TensorInfo> {
    let of = |(i, shape): (usize, &&[i64])| TensorInfo {
        grad_dtype,
        ..TensorInfo::new(format!("t{i}"), shape, param_dtype)
    };
    SHAPES.iter().enumerate().map(of).collect()
}
