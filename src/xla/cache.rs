//! The plans of XLA's calls, found by the text of their attribute.
//!
//! A handler has no handle: XLA calls it with attributes and buffers only, and pointers are never
//! attributes, as executables are cached and serialized. So the plan travels as JSON and is made
//! at its first call; for a CUDA device before that, as a call may be captured in a graph. The cache
//! only grows, by one entry for each distinct model and device; it is the one piece of global state
//! of this library.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::backend::{Context, CpuContext, CudaContext, Variant};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, invalid};
use crate::numerics::FpEnv;
use crate::plan::{Plan, TensorInfo};
use crate::spec::Spec;
use crate::weights::Weights;

/// The attribute `plan`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanJson {
    spec: Spec,
    tensors: Vec<TensorJson>,
    /// Threads of the CPU backend, the caller's among them; 0: as many as the process may use. Not
    /// read for CUDA devices.
    #[serde(default)]
    threads: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorJson {
    name: String,
    shape: Vec<i64>,
    param_dtype: Dtype,
    grad_dtype: Dtype,
    #[serde(default)]
    weights: Weights,
    #[serde(default)]
    group: usize,
    #[serde(default)]
    global_shape: Option<Vec<i64>>,
    #[serde(default)]
    offset: Option<Vec<i64>>,
}

/// Where XLA's buffers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Cpu,
    /// A device by its ordinal.
    Cuda(i32),
}

/// Contexts are shared by the plans of a place, on the CPU by those with as many threads.
struct Cache {
    contexts: BTreeMap<(Place, usize), Arc<Context>>,
    plans: BTreeMap<Place, BTreeMap<String, Arc<Plan>>>,
}

static CACHE: Mutex<Cache> = Mutex::new(Cache {
    contexts: BTreeMap::new(),
    plans: BTreeMap::new(),
});

impl Cache {
    fn find(&self, place: Place, json: &str) -> Option<Arc<Plan>> {
        self.plans.get(&place)?.get(json).map(Arc::clone)
    }
}

fn lock() -> MutexGuard<'static, Cache> {
    // Entries are complete when they are inserted, so a panic under the lock leaves none behind.
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The plan that `json` describes, made before by [`plan`].
///
/// # Errors
/// `CudaUnavailable` where it was not.
pub(super) fn made(place: Place, json: &str) -> Result<Arc<Plan>> {
    lock().find(place, json).ok_or_else(|| {
        Error::new(
            Status::CudaUnavailable,
            format!("the step was executed on {place:?} before it was initialized there"),
        )
    })
}

/// Whether there is a plan on some CUDA device, and so a driver.
pub(super) fn has_devices() -> bool {
    lock().plans.keys().any(|place| *place != Place::Cpu)
}

/// The plan that `json` describes.
///
/// # Errors
/// `InvalidArgument` for malformed JSON; what [`Spec::validate`] and [`Plan::new`] refuse;
/// `CudaUnavailable`.
pub(super) fn plan(place: Place, json: &str) -> Result<Arc<Plan>> {
    let mut cache = lock();
    if let Some(plan) = cache.find(place, json) {
        return Ok(plan);
    }
    // XLA's threads flush subnormals, and numbers are read by arithmetic.
    let _env = FpEnv::ieee();
    let request: PlanJson =
        serde_json::from_str(json).map_err(|error| invalid(format!("attribute plan: {error}")))?;
    let key = match place {
        Place::Cpu => (place, request.threads),
        Place::Cuda(_) => (place, 0),
    };
    let context = match cache.contexts.get(&key) {
        Some(context) => Arc::clone(context),
        None => {
            let context = Arc::new(match place {
                Place::Cpu => Context::Cpu(CpuContext::new(request.threads, Variant::Auto)?),
                Place::Cuda(device) => Context::Cuda(CudaContext::new(device)?),
            });
            cache.contexts.insert(key, Arc::clone(&context));
            context
        }
    };
    let tensors = request.tensors.into_iter().map(TensorInfo::from).collect();
    let plan = Arc::new(Plan::new(context, &request.spec, tensors)?);
    let plans = cache.plans.entry(place).or_default();
    plans.insert(json.to_owned(), Arc::clone(&plan));
    Ok(plan)
}

impl From<TensorJson> for TensorInfo {
    fn from(tensor: TensorJson) -> Self {
        Self {
            name: tensor.name,
            shape: tensor.shape,
            param_dtype: tensor.param_dtype,
            grad_dtype: tensor.grad_dtype,
            weights: tensor.weights,
            group: tensor.group,
            global_shape: tensor.global_shape,
            offset: tensor.offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{
        "spec": {"optimizer": "adamw", "m": {"bits": 32}, "v": {"bits": 32}},
        "tensors": [{"name": "w", "shape": [2, 3], "param_dtype": "f32", "grad_dtype": "bf16"}],
        "threads": 1
    }"#;

    #[test]
    fn equal_texts_share_a_plan_and_all_plans_their_contexts() {
        let first = plan(Place::Cpu, JSON).unwrap();
        assert!(Arc::ptr_eq(&first, &plan(Place::Cpu, JSON).unwrap()));
        let other = plan(Place::Cpu, &JSON.replace("[2, 3]", "[3, 2]")).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(Arc::ptr_eq(&first.context, &other.context));
    }

    #[test]
    fn errors_name_the_key_or_the_tensor() {
        for (text, expected) in [
            (JSON.replace("\"threads\"", "\"treads\""), "treads"),
            (JSON.replace("bf16", "f64"), "f64"),
            (JSON.replace("bf16", "u8"), "tensor 0 (\"w\"): grad_dtype"),
            (JSON.replace("[2, 3]", "[-2, 3]"), "tensor 0 (\"w\")"),
            (JSON.replace("adamw", "sgd"), "sgd"),
            ("{".to_owned(), "attribute plan"),
        ] {
            let error = plan(Place::Cpu, &text).unwrap_err().to_string();
            assert!(
                error.contains(expected),
                "{error} should contain {expected}"
            );
        }
    }
}
