//! `lowbit diff`: whether two checkpoints have the same states, whatever their meshes and quantizers.

use std::collections::BTreeSet;

use lowbit::checkpoint::Checkpoint;
use lowbit::diagnose::relative_error;
use serde_json::json;

use crate::output::{Output, table};
use crate::{Arguments, Failure};

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let (a, b) = (
        Checkpoint::open(&arguments.paths[0])?,
        Checkpoint::open(&arguments.paths[1])?,
    );
    for side in [&a, &b] {
        let mut progress = output.progress("verifying");
        side.verify(Some(&mut |done, total| progress.report(done, total)))?;
    }
    let (step, spec) = (a.step() == b.step(), a.spec() == b.spec());
    let mut text = String::new();
    if !step {
        text += &format!("steps: {} and {}\n", a.step(), b.step());
    }
    if !spec {
        text += &format!(
            "specs: {}\n       {}\n",
            a.spec().to_json()?,
            b.spec().to_json()?
        );
    }
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    rows.push(
        [
            "tensor",
            "state",
            ">elements that differ",
            ">largest difference",
            ">rel. difference",
        ]
        .map(str::to_owned)
        .to_vec(),
    );
    let mut compared = 0;
    let (here, there) = (a.tensors(), b.tensors());
    let names: BTreeSet<_> = here.iter().chain(&there).map(|info| &info.name).collect();
    let mut progress = output.progress("comparing");
    for (i, name) in names.iter().enumerate() {
        progress.share(i as u64, names.len() as u64);
        let find = |list: &'_ [lowbit::plan::TensorInfo]| {
            let info = list.iter().find(|info| info.name == **name);
            info.map(|info| info.shape.clone())
        };
        let (one, other) = (find(&here), find(&there));
        if one != other {
            let shape = |shape: &Option<Vec<i64>>| match shape {
                Some(shape) => format!("{shape:?}"),
                None => "not there".to_owned(),
            };
            text += &format!("{name}: {} and {}\n", shape(&one), shape(&other));
            list.push(json!({"tensor": name, "shapes": [one, other]}));
            continue;
        }
        let shape = one.unwrap_or_default();
        let states: BTreeSet<_> = a.spec().states().iter().chain(b.spec().states()).collect();
        for state in states {
            let both = [&a, &b].map(|side| side.spec().states().contains(state));
            if both != [true, true] {
                text += &format!("{name}/{state}: only in one of them\n");
                list.push(json!({"tensor": name, "state": state, "only_in": both}));
                continue;
            }
            compared += 1;
            let zeros = vec![0; shape.len()];
            let x = a.values(name, state, &zeros, &shape)?;
            let y = b.values(name, state, &zeros, &shape)?;
            let pairs = || x.iter().zip(&y);
            let differ = pairs().filter(|(x, y)| x.to_bits() != y.to_bits()).count();
            if differ == 0 {
                continue;
            }
            let largest = pairs().fold(0.0_f64, |largest, (x, y)| {
                largest.max((f64::from(*x) - f64::from(*y)).abs())
            });
            let relative = relative_error(&x, &y);
            rows.push(vec![
                (*name).clone(),
                (*state).to_owned(),
                format!("{differ} of {}", x.len()),
                format!("{largest:.3e}"),
                format!("{:.3} %", 100.0 * relative),
            ]);
            list.push(json!({
                "tensor": name, "state": state, "differ": differ, "elements": x.len(),
                "largest_difference": largest, "relative_difference": relative,
            }));
        }
    }
    drop(progress);
    let equal = step && spec && list.is_empty();
    if rows.len() > 1 {
        text += &table(&rows);
    }
    text += &format!(
        "{compared} states compared: {}\n",
        if equal {
            "equal"
        } else {
            "the checkpoints differ"
        }
    );
    let result = json!({
        "equal": equal, "steps": [a.step(), b.step()], "same_spec": spec, "compared": compared,
        "differences": list,
    });
    output.result(&result, &text);
    Ok(equal)
}
