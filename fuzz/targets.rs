//! What is fuzzed: each function takes any bytes and must return. Shared by the fuzzers
//! (`fuzz_targets`) and by `tests/fuzz_corpus.rs`, which replays their corpus.

use std::ffi::{CString, c_char, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use lowbit::checkpoint::Checkpoint;
use lowbit::dtype::Dtype;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::state::State;

/// Opens, verifies and loads a checkpoint; with `as_written`, bytes whose checksums are made right
/// first, so that what lies behind them is reached too.
pub fn deserialize(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else {
        return;
    };
    if mode % 2 == 0 {
        load(data);
    } else if let Some(fixed) = with_right_checksums(data) {
        load(&fixed);
    }
}

fn load(data: &[u8]) {
    let Ok(from) = Checkpoint::of(Box::new(data)) else {
        return;
    };
    let _ = from.to_json();
    if from.verify(None).is_err() {
        return;
    }
    for info in from.tensors().iter().take(2) {
        for state in from.spec().states() {
            let zeros = vec![0; info.shape.len()];
            let ones: Vec<_> = info.shape.iter().map(|extent| *extent.min(&1)).collect();
            let _ = from.values(&info.name, state, &zeros, &ones);
        }
    }
    // Whatever a verified file says of itself is a plan that reads it.
    let tensors = from.tensors().into_iter().map(|info| {
        let (offset, shape) = from.places(&info.name).remove(0);
        TensorInfo {
            offset: Some(offset),
            global_shape: Some(info.shape.clone()),
            shape,
            ..info
        }
    });
    let plan = from.plan(tensors.collect()).expect("a plan of the file");
    let state = State::new(&plan, null_mut()).expect("no larger than the file");
    // SAFETY: the plan's own state.
    unsafe { plan.read_checkpoint(&from, state.buffers(), false, None, null_mut()) }
        .expect("a verified file loads");
    let mut again = Vec::new();
    // SAFETY: the plan's own state.
    unsafe { plan.write_checkpoint(state.buffers(), from.step(), &mut again, None, null_mut()) }
        .expect("what was loaded is saved");
    // Into another plan, which refuses it or is its own.
    let (plan, state) = fixed();
    // SAFETY: the plan's own state, of this thread.
    let _ = unsafe { plan.read_checkpoint(&from, state.buffers(), true, None, null_mut()) };
}

thread_local! {
    static FIXED: OnceLock<(&'static Plan, &'static State)> = const { OnceLock::new() };
}

fn fixed() -> (&'static Plan, &'static State) {
    FIXED.with(|fixed| {
        *fixed.get_or_init(|| {
            let context = lowbit::CpuContext::new(1, lowbit::Variant::Portable).unwrap();
            let spec = Spec::preset("adamw4").unwrap();
            let tensors = vec![TensorInfo::new("t1", &[1], Dtype::F32)];
            let context = std::sync::Arc::new(lowbit::Context::Cpu(context));
            let plan = Plan::new(context, &spec, tensors).unwrap();
            let state = State::new(&plan, null_mut()).unwrap();
            (
                Box::leak(Box::new(plan)) as &_,
                Box::leak(Box::new(state)) as &_,
            )
        })
    })
}

/// The file with the checksums of its header and entries, if it has a container's header.
fn with_right_checksums(data: &[u8]) -> Option<Vec<u8>> {
    let length = u64::from_le_bytes(data.get(..8)?.try_into().ok()?);
    let start = usize::try_from(length).ok()?.checked_add(8)?;
    let json: serde_json::Value = serde_json::from_slice(data.get(8..start)?).ok()?;
    let entry = |value: &serde_json::Value| {
        let offsets = value.get("data_offsets")?;
        let at = |i: usize| {
            usize::try_from(offsets.get(i)?.as_u64()?)
                .ok()?
                .checked_add(start)
        };
        Some((at(0)?, at(1)?))
    };
    let mut entries: Vec<_> = json.as_object()?.values().filter_map(entry).collect();
    entries.sort_unstable();
    let (mut at, _) = entries.pop()?;
    let mut fixed = data.to_vec();
    let header = crc32fast::hash(&data[..start]);
    let sums = entries
        .iter()
        .map(|&(first, end)| data.get(first..end).map_or(0, crc32fast::hash));
    for sum in std::iter::once(header).chain(sums) {
        fixed
            .get_mut(at..at.checked_add(4)?)?
            .copy_from_slice(&sum.to_le_bytes());
        at += 4;
    }
    Some(fixed)
}

/// Reads a spec; one that is accepted is printed, read again, and makes a plan.
pub fn spec_json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(spec) = Spec::from_json(text) else {
        return;
    };
    let printed = spec.to_json().expect("a spec prints");
    let again = Spec::from_json(&printed).expect("a printed spec reads");
    assert_eq!(again, spec);
    let context = lowbit::CpuContext::new(1, lowbit::Variant::Portable).unwrap();
    let shapes: [&[i64]; 4] = [&[], &[5000], &[80, 70], &[3, 4, 5, 100]];
    let tensors = shapes
        .into_iter()
        .enumerate()
        .map(|(i, shape)| TensorInfo::new(format!("t{i}"), shape, Dtype::F32));
    let context = std::sync::Arc::new(lowbit::Context::Cpu(context));
    let _ = Plan::new(context, &spec, tensors.collect()).map(|plan| plan.report());
}

unsafe extern "C" {
    fn lowbit_spec_create(info: *const c_void, out: *mut *mut c_void) -> i32;
    fn lowbit_spec_create_preset(name: *const c_char, out: *mut *mut c_void) -> i32;
    fn lowbit_spec_destroy(spec: *mut c_void);
    fn lowbit_context_create_cpu(info: *const c_void, out: *mut *mut c_void) -> i32;
    fn lowbit_context_destroy(context: *mut c_void);
    fn lowbit_plan_create(
        context: *const c_void,
        spec: *const c_void,
        tensors: *const c_void,
        count: i64,
        out: *mut *mut c_void,
    ) -> i32;
    fn lowbit_plan_info(plan: *const c_void, out: *mut c_void) -> i32;
    fn lowbit_plan_destroy(plan: *mut c_void);
    fn lowbit_step(plan: *const c_void, args: *const c_void, stream: *mut c_void) -> i32;
    fn lowbit_checkpoint_write(
        plan: *const c_void,
        args: *const c_void,
        stream: *mut c_void,
    ) -> i32;
    fn lowbit_checkpoint_read(
        plan: *const c_void,
        args: *const c_void,
        stream: *mut c_void,
        out: *mut c_void,
    ) -> i32;
}

/// A struct of C as the fuzzer has it: any bytes, but for a truthful size and for pointers, which
/// lead somewhere or are null.
struct Struct {
    words: Vec<u64>,
}

impl Struct {
    /// `pointers`: byte offsets, with what may stand there.
    fn new(data: &mut &[u8], pointers: &[(usize, *const c_void)]) -> Self {
        let size = usize::from(take(data)) * 2;
        let mut bytes = vec![0; size.max(8).next_multiple_of(8)];
        for byte in &mut bytes[8..] {
            *byte = take(data);
        }
        let mut words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap()))
            .collect();
        // Odd sizes as well; never more than is there.
        words[0] = size as u64;
        for &(offset, target) in pointers {
            if let Some(word) = words.get_mut(offset / 8) {
                *word = if *word % 2 == 0 { 0 } else { target as u64 };
            }
        }
        Self { words }
    }

    fn pointer(&self) -> *const c_void {
        self.words.as_ptr().cast()
    }

    fn pointer_mut(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    fn limit(&mut self, offset: usize, most: u64) {
        if let Some(word) = self.words.get_mut(offset / 8) {
            *word %= most;
        }
    }
}

/// The next byte, 0 when there are no more.
fn take(data: &mut &[u8]) -> u8 {
    match data.split_first() {
        Some((first, rest)) => {
            *data = rest;
            *first
        }
        None => 0,
    }
}

/// Calls what takes sized structs, with structs of any size and content.
pub fn sized_structs(mut data: &[u8]) {
    let data = &mut data;
    let text = |data: &mut &[u8]| {
        let length = usize::from(take(data)) % 16;
        let bytes: Vec<_> = (0..length).map(|_| take(data).max(1)).collect();
        CString::new(bytes).unwrap()
    };
    let levels: Vec<f32> = (0..16).map(|_| f32::from(take(data)) / 255.0).collect();
    let shape = [1_i64, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    // Offsets as in include/lowbit.h; tests/c/layout.c compares those with the library.
    let mut quantizers = Vec::new();
    for _ in 0..3 {
        let mut quantizer = Struct::new(data, &[(40, levels.as_ptr().cast())]);
        quantizer.limit(48, 17);
        quantizers.push(quantizer);
    }
    let name = text(data);
    let [m, v, x] = [0, 1, 2].map(|i| quantizers[i].pointer());
    let rule = Struct::new(
        data,
        &[(8, name.as_ptr().cast()), (16, m), (24, v), (32, x)],
    );
    let adafactor = Struct::new(data, &[]);
    let pointers = [
        (16, name.as_ptr().cast()),
        (40, m),
        (48, v),
        (56, x),
        (64, rule.pointer()),
        (96, adafactor.pointer()),
    ];
    let mut info = Struct::new(data, &pointers);
    info.limit(72, 2);
    let (mut spec, mut context, mut plan) = (null_mut(), null_mut(), null_mut());
    let mut cpu = Struct::new(data, &[(32, std::ptr::null()), (40, std::ptr::null())]);
    // Threads are not what is fuzzed, and starting them takes longer than all else.
    let one_thread: [u64; 6] = [48, 0, 1, 0, 0, 0];
    if let Some(threads) = cpu.words.get_mut(2) {
        *threads = one_thread[2];
    }
    // SAFETY: sizes are true, pointers lead somewhere or are null, counts fit.
    unsafe {
        if lowbit_spec_create(info.pointer(), &mut spec) != 0 {
            assert!(spec.is_null());
            assert_eq!(lowbit_spec_create_preset(c"adamw4".as_ptr(), &mut spec), 0);
        }
        if lowbit_context_create_cpu(cpu.pointer(), &mut context) != 0 {
            assert!(context.is_null());
            let info = one_thread.as_ptr().cast();
            assert_eq!(lowbit_context_create_cpu(info, &mut context), 0);
        }
    }
    let shape: *const c_void = shape.as_ptr().cast();
    let pointers = [
        (16, name.as_ptr().cast()),
        (24, shape),
        (48, shape),
        (56, shape),
    ];
    let mut tensor = Struct::new(data, &pointers);
    // ndim shares a word with param_dtype.
    if let Some(word) = tensor.words.get_mut(4) {
        *word = *word & !0xffff_ffff | (*word % 19);
    }
    // SAFETY: as above.
    unsafe {
        let count = i64::from(take(data) % 2);
        if lowbit_plan_create(context, spec, tensor.pointer(), count, &mut plan) == 0 {
            let mut sizes = Struct::new(data, &[]);
            lowbit_plan_info(plan, sizes.pointer_mut());
            let null = std::ptr::null();
            // No state buffers are there, so that nothing can be read or written.
            let mut step = Struct::new(data, &[(24, null), (32, null), (40, null), (56, null)]);
            step.limit(16, 1);
            step.limit(48, 1);
            for offset in [64, 120, 128, 136, 144] {
                step.limit(offset, 1);
            }
            lowbit_step(plan, step.pointer(), null_mut());
            let path: *const c_void = c"/nonexistent/x".as_ptr().cast();
            let mut save = Struct::new(data, &[(24, null), (40, path), (48, null), (72, null)]);
            save.limit(8, 1);
            save.limit(16, 1);
            lowbit_checkpoint_write(plan, save.pointer(), null_mut());
            let mut load = Struct::new(data, &[(24, null), (32, path), (40, null), (72, null)]);
            load.limit(8, 1);
            load.limit(16, 1);
            let mut out = Struct::new(data, &[]);
            lowbit_checkpoint_read(plan, load.pointer(), null_mut(), out.pointer_mut());
        }
        lowbit_plan_destroy(plan);
        lowbit_context_destroy(context);
        lowbit_spec_destroy(spec);
    }
}
