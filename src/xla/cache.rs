//! The plans of XLA's calls, found by the text of their attribute.
//!
//! A handler has no handle: XLA calls it with attributes and buffers only, and pointers are never
//! attributes, as executables are cached and serialized. So the plan travels as JSON and is made
//! at its first call. The cache only grows, by one entry for each distinct model; it is the one
//! piece of global state of this library.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use crate::backend::{Context, CpuContext, Variant};
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
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
    /// Threads of the CPU backend, the caller's among them; 0: as many as the process may use.
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

/// Contexts are shared by plans with as many threads.
struct Cache {
    contexts: BTreeMap<usize, Arc<Context>>,
    plans: BTreeMap<String, Arc<Plan>>,
}

static CACHE: Mutex<Cache> = Mutex::new(Cache {
    contexts: BTreeMap::new(),
    plans: BTreeMap::new(),
});

/// The plan that `json` describes.
///
/// # Errors
/// `InvalidArgument` for malformed JSON; what [`Spec::validate`] and [`Plan::new`] refuse.
pub(super) fn plan(json: &str) -> Result<Arc<Plan>> {
    // Entries are complete when they are inserted, so a panic under the lock leaves none behind.
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = cache.plans.get(json) {
        return Ok(Arc::clone(plan));
    }
    // XLA's threads flush subnormals, and numbers are read by arithmetic.
    let _env = FpEnv::ieee();
    let request: PlanJson =
        serde_json::from_str(json).map_err(|error| invalid(format!("attribute plan: {error}")))?;
    let context = match cache.contexts.get(&request.threads) {
        Some(context) => Arc::clone(context),
        None => {
            let context = Arc::new(Context::Cpu(CpuContext::new(
                request.threads,
                Variant::Auto,
            )?));
            cache.contexts.insert(request.threads, Arc::clone(&context));
            context
        }
    };
    let tensors = request.tensors.into_iter().map(TensorInfo::from).collect();
    let plan = Arc::new(Plan::new(context, &request.spec, tensors)?);
    cache.plans.insert(json.to_owned(), Arc::clone(&plan));
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
        let first = plan(JSON).unwrap();
        assert!(Arc::ptr_eq(&first, &plan(JSON).unwrap()));
        let other = plan(&JSON.replace("[2, 3]", "[3, 2]")).unwrap();
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
            let error = plan(&text).unwrap_err().to_string();
            assert!(
                error.contains(expected),
                "{error} should contain {expected}"
            );
        }
    }
}
