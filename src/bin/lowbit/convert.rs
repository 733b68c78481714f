//! `lowbit convert`: the same states under other quantizers, and what that loses. Old and new states are
//! in memory at once.

use lowbit::checkpoint::Checkpoint;
use lowbit::diagnose::relative_error;
use lowbit::error::{Error, Status};
use lowbit::plan::Plan;
use lowbit::spec::Spec;
use lowbit::state::State;
use serde_json::json;

use crate::output::{Output, table};
use crate::{Arguments, Failure};

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let text = arguments.spec.as_deref();
    let text = text.ok_or_else(|| Failure::Usage("convert needs --spec".to_owned()))?;
    let spec = spec(text)?;
    let from = Checkpoint::open(&arguments.paths[0])?;
    let old = from.plan(from.tensors())?;
    let new = Plan::new(context()?, &spec, from.tensors())?;
    let none = std::ptr::null_mut();
    let (old_state, new_state) = (State::new(&old, none)?, State::new(&new, none)?);
    let mut progress = output.progress("reading");
    let mut report = |done, total| progress.report(done, total);
    // SAFETY: the states are those of the plans and nobody else's.
    #[expect(unsafe_code, reason = "states are raw memory")]
    unsafe {
        old.read_checkpoint(&from, old_state.buffers(), false, Some(&mut report), none)?;
        new.convert_from(&old, old_state.buffers(), new_state.buffers())?;
    }
    drop(progress);
    let path = &arguments.paths[1];
    let mut progress = output.progress("writing");
    let mut report = |done, total| progress.report(done, total);
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "states are raw memory")]
    unsafe {
        let (state, step) = (new_state.buffers(), from.step());
        new.save_checkpoint(state, step, path, 0, Some(&mut report), none)?;
    }
    drop(progress);
    let written = Checkpoint::open(path)?;
    let mut rows = vec![
        ["tensor", "state", "quantizer", ">rel. error"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut list = Vec::new();
    for tensor in new.tensors() {
        let (name, shape) = (&tensor.info.name, &tensor.info.shape);
        let zeros = vec![0; shape.len()];
        for state in &tensor.states {
            let error = if old.spec().states().contains(&state.name) {
                let before = from.values(name, state.name, &zeros, shape)?;
                let after = written.values(name, state.name, &zeros, shape)?;
                Some(relative_error(&before, &after))
            } else {
                None
            };
            rows.push(vec![
                name.clone(),
                state.name.to_owned(),
                state.describe(),
                error.map_or("starts at 0".to_owned(), |e| format!("{:.3} %", 100.0 * e)),
            ]);
            list.push(json!({
                "tensor": name, "state": state.name, "quantizer": state.describe(),
                "relative_error": error,
            }));
        }
    }
    let result = json!({
        "written": path.to_string_lossy(), "bytes": written.bytes(), "states": list,
    });
    let text = format!(
        "{}wrote {}: {} bytes, {} before\n",
        table(&rows),
        path.display(),
        written.bytes(),
        from.bytes()
    );
    output.result(&result, &text);
    Ok(true)
}

fn context() -> Result<std::sync::Arc<lowbit::Context>, Failure> {
    let cpu = lowbit::CpuContext::new(0, lowbit::Variant::Auto)?;
    Ok(std::sync::Arc::new(lowbit::Context::Cpu(cpu)))
}

/// A preset's name, JSON, or `@` and a file with JSON.
fn spec(text: &str) -> Result<Spec, Failure> {
    if let Some(path) = text.strip_prefix('@') {
        let json = std::fs::read_to_string(path)
            .map_err(|error| Error::new(Status::Io, format!("{path}: {error}")))?;
        return Ok(Spec::from_json(&json)?);
    }
    if text.trim_start().starts_with('{') {
        return Ok(Spec::from_json(text)?);
    }
    Ok(Spec::preset(text)?)
}
