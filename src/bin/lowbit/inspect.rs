//! `lowbit inspect`: what a checkpoint has.

use lowbit::checkpoint::Checkpoint;
use serde_json::json;

use crate::output::{Output, table};
use crate::{Arguments, Failure};

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let path = &arguments.paths[0];
    let from = Checkpoint::open(path)?;
    if !arguments.headers {
        let mut progress = output.progress("verifying");
        from.verify(Some(&mut |done, total| progress.report(done, total)))?;
    }
    let tensors = from.tensors();
    let plan = from.plan(tensors.clone())?;
    let mut rows = vec![
        [
            "tensor",
            "shape",
            "shards",
            "state",
            "quantizer",
            ">bytes",
            ">rms",
            ">largest",
            ">est. error",
            ">lowest",
            ">highest",
            ">zero scale",
            ">nonfinite",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut list = Vec::new();
    let (mut elements, mut values) = (0_i64, 0_i64);
    let mut progress = output.progress("decoding");
    let total: i64 = plan.tensors().iter().map(|tensor| tensor.numel).sum();
    for (info, tensor) in tensors.iter().zip(plan.tensors()) {
        let shards = from.places(&info.name).len();
        let statistics = if arguments.headers {
            Vec::new()
        } else {
            from.statistics(&info.name)?
        };
        elements += tensor.numel;
        progress.share(elements.unsigned_abs(), total.unsigned_abs());
        values += tensor.numel * tensor.states.len() as i64;
        let mut states = Vec::new();
        for (number, state) in tensor.states.iter().enumerate() {
            let buffers = plan.buffers()[tensor.state_buffers(number)].iter();
            let bytes: i64 = buffers.map(|buffer| buffer.bytes).sum();
            let found = statistics.get(number);
            let percent = |share: Option<f64>| {
                share.map_or("-".to_owned(), |share| format!("{:.2} %", 100.0 * share))
            };
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |x| format!("{x:.3e}"));
            rows.push(vec![
                info.name.clone(),
                format!("{:?}", info.shape),
                shards.to_string(),
                state.name.to_owned(),
                state.describe(),
                bytes.to_string(),
                number(found.map(|s| s.rms)),
                number(found.map(|s| s.largest)),
                percent(found.and_then(|s| s.estimated_error)),
                percent(found.and_then(|s| s.lowest_codes)),
                percent(found.and_then(|s| s.highest_codes)),
                percent(found.and_then(|s| s.zero_scales)),
                found.map_or("-".to_owned(), |s| s.nonfinite.to_string()),
            ]);
            states.push(match found {
                Some(found) => json!(found),
                None => json!({
                    "state": state.name, "quantizer": state.describe(), "bytes": bytes,
                }),
            });
        }
        let beside = info.weights.name();
        let weights: i64 = plan.buffers()[tensor.buffers()]
            .iter()
            .filter(|buffer| buffer.state == "weights")
            .map(|buffer| buffer.bytes)
            .sum();
        if weights > 0 {
            let mut row = vec!["-".to_owned(); rows[0].len()];
            row[0].clone_from(&info.name);
            row[1] = format!("{:?}", info.shape);
            row[2] = shards.to_string();
            row[3] = "weights".to_owned();
            row[4] = beside.to_owned();
            row[5] = weights.to_string();
            rows.push(row);
        }
        list.push(json!({
            "name": info.name, "shape": info.shape, "shards": shards, "reason": tensor.reason,
            "weights": beside, "weights_bytes": weights, "states": states,
        }));
    }
    drop(progress);
    let bytes = plan.state_bytes();
    let result = json!({
        "path": path.to_string_lossy(), "step": from.step(), "files": from.files(),
        "file_bytes": from.bytes(), "spec": from.spec(), "tensors": list,
        "elements": elements, "state_bytes": bytes, "f32_bytes": 4 * values,
        "bytes_per_parameter": ratio(bytes, elements),
    });
    let mut text = format!(
        "{}: step {}, {} file(s), {} bytes\nspec: {}\n\n",
        path.display(),
        from.step(),
        from.files(),
        from.bytes(),
        from.spec().to_json()?
    );
    text += &table(&rows);
    text += &format!(
        "\n{elements} elements, {bytes} bytes of state, {:.4} B/parameter; the same states in f32: {} \
         bytes, {:.2} x as many\n",
        ratio(bytes, elements),
        4 * values,
        ratio(4 * values, bytes),
    );
    output.result(&result, &text);
    Ok(true)
}

fn ratio(a: i64, b: i64) -> f64 {
    a as f64 / b.max(1) as f64
}
