//! Where tensors may be cut: the rule, restated from its description in `src/layout.rs`, and what is
//! said about every other cut.

use std::sync::Arc;

use lowbit::dtype::Dtype;
use lowbit::error::{Error, Status};
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::{Context, CpuContext, Variant};
use proptest::prelude::*;

use crate::common::Model;
use crate::shards::{Place, place};
use lowbit::step::Stage;

/// The indices at which an axis may be cut, in order, its two ends among them. A block row is the
/// last axis, with axes before it until it holds a block. Axes before the row are cut anywhere; of
/// the row only its outermost axis that is longer than 1, and only where a block ends.
pub(crate) fn allowed(global: &[i64], block: i64, axis: usize) -> Vec<i64> {
    let size = |axis: usize| global[axis..].iter().product::<i64>();
    let row = (0..global.len())
        .rev()
        .find(|&first| size(first) >= block)
        .unwrap_or(0);
    let extent = global[axis];
    if axis < row {
        return (0..=extent).collect();
    }
    let outermost = (row..global.len()).find(|&axis| global[axis] > 1);
    let ends_block = |cut: &i64| {
        Some(axis) == outermost && cut * global[axis + 1..].iter().product::<i64>() % block == 0
    };
    (0..=extent)
        .filter(|cut| *cut == 0 || *cut == extent || ends_block(cut))
        .collect()
}

/// The allowed cuts around one that is not.
fn nearest(allowed: &[i64], cut: i64) -> (i64, i64) {
    let above = allowed.partition_point(|&other| other < cut);
    (allowed[above - 1], allowed[above])
}

fn plan(spec: &Spec, global: &[i64], place: &Place) -> Result<Plan, Error> {
    let info = TensorInfo {
        shape: place.shape.clone(),
        global_shape: Some(global.to_vec()),
        offset: Some(place.offset.clone()),
        ..TensorInfo::new("h0.attn.weight", &[], Dtype::F32)
    };
    let cpu = CpuContext::new(1, Variant::Portable)?;
    Plan::new(Arc::new(Context::Cpu(cpu)), spec, vec![info])
}

/// A tensor's shape, and a box in it.
fn boxes() -> impl Strategy<Value = (Vec<i64>, Place)> {
    let axis = (1_i64..40, any::<bool>()).prop_flat_map(|(extent, long)| {
        let extent = if long { extent * 32 } else { extent };
        (Just(extent), 0..=extent, 0..=extent)
    });
    prop::collection::vec(axis, 1..4).prop_map(|axes| {
        let of = |axis: fn(&(i64, i64, i64)) -> i64| axes.iter().map(axis).collect::<Vec<_>>();
        let offset = of(|(_, a, b)| *a.min(b));
        let shape = of(|(_, a, b)| (a - b).abs());
        (of(|(extent, ..)| *extent), Place { offset, shape })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_made_for_allowed_boxes_and_no_others(
        (global, place) in boxes(),
        block in prop::sample::select(vec![32_i64, 128, 512]),
    ) {
        let quantizer = format!(r#"{{"bits":4,"normalization":"block","block":{block},"mapping":"de"}}"#);
        let spec = format!(r#"{{"optimizer":"lion","threshold":0,"m":{quantizer}}}"#);
        let made = plan(&Spec::from_json(&spec).unwrap(), &global, &place);
        let ends = |axis: usize| [place.offset[axis], place.offset[axis] + place.shape[axis]];
        let empty = place.shape.contains(&0);
        let broken: Vec<_> = (0..global.len())
            .flat_map(|axis| ends(axis).map(|cut| (axis, cut)))
            .filter(|(axis, cut)| !empty && !allowed(&global, block, *axis).contains(cut))
            .collect();
        match made {
            Ok(_) => prop_assert!(broken.is_empty(), "{place:?} of {global:?} by {block}"),
            Err(error) => {
                prop_assert_eq!(error.status(), Status::InvalidArgument);
                let text = error.to_string();
                prop_assert!(text.contains("tensor 0 (\"h0.attn.weight\")"), "{}", text);
                let named = broken.iter().any(|(axis, cut)| {
                    let (below, above) = nearest(&allowed(&global, block, *axis), *cut);
                    text.contains(&format!("axis {axis} is cut at {cut}"))
                        && text.contains(&format!("the nearest allowed cuts are {below} and {above}"))
                });
                prop_assert!(named, "{broken:?}: {text}");
            }
        }
    }
}

#[test]
fn a_place_given_with_the_call_is_checked_as_well() {
    let spec = Spec::preset("adamw4-block").unwrap();
    let plan = plan(&spec, &[300, 64], &place(&[0, 0], &[100, 64])).unwrap();
    let mut model = Model::of(plan);
    model.step = 1;
    model.stage(Stage::All, Some(&[Some(&[200, 0])])).unwrap();
    let error = model
        .stage(Stage::All, Some(&[Some(&[99, 0])]))
        .unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    let text = error.to_string();
    assert!(
        text.contains("offset of h0.attn.weight") && text.contains("98 and 100"),
        "{text}"
    );
    let error = model
        .stage(Stage::All, Some(&[Some(&[202, 0])]))
        .unwrap_err();
    assert!(error.to_string().contains("must lie in 300"), "{error}");
}
