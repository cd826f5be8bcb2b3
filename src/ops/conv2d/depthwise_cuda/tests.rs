use super::*;

const H100: usize = 132;

fn geometry(x: [usize; 4], kernel: [usize; 2], stride: usize, pad: usize) -> Geometry {
    let op = Conv2d { stride: [stride; 2], pad: [pad; 2], dilation: [1; 2], groups: x[3] };
    Geometry::new(&op, &[x.into(), [x[3], kernel[0], kernel[1], 1].into()]).unwrap()
}

fn way(x: [usize; 4], dtype: DType) -> Way {
    plan(&geometry(x, [7, 7], 1, 3), dtype, Pass::Fwd, H100).way
}

#[test]
fn convnext_goes_the_fast_ways() {
    for (side, c, strip, span) in [
        (56, 96, 8, 16),
        (28, 192, 7, 16),
        (14, 384, 7, 16),
        (7, 768, 7, 8),
        (64, 128, 8, 16),
        (8, 1536, 8, 8),
    ] {
        assert_eq!(way([8, side, side, c], DType::F32), Way::Rows { strip });
        assert_eq!(way([8, side, side, c], DType::Bf16), Way::Tensor { span });
    }
}

#[test]
fn everything_else_is_general() {
    let general = |dtype, wide| Way::General { dtype, wide };
    assert_eq!(way([1, 8, 8, 37], DType::F32), general(DType::F32, false));
    assert_eq!(way([1, 8, 8, 36], DType::Bf16), general(DType::Bf16, false));
    let of = |kernel, stride, pad| {
        plan(&geometry([1, 20, 20, 64], kernel, stride, pad), DType::F32, Pass::Dgrad, H100).way
    };
    for (kernel, stride, pad) in [([3, 3], 1, 1), ([7, 7], 2, 3), ([7, 5], 1, 3), ([7, 7], 1, 7)] {
        assert_eq!(of(kernel, stride, pad), general(DType::F32, true));
    }
}

#[test]
fn every_plan_is_a_listed_variant_and_a_legal_grid() {
    let all = variants();
    for (x, kernel, stride, pad) in [
        ([64, 56, 56, 96], [7, 7], 1, 3),
        ([64, 7, 7, 768], [7, 7], 1, 3),
        ([3, 9, 8, 5], [3, 5], 2, 1),
        ([1, 1, 1, 1], [1, 1], 1, 0),
        ([1, 300, 300, 4096], [7, 7], 1, 3),
        ([256, 224, 224, 32], [3, 3], 1, 1),
    ] {
        let g = geometry(x, kernel, stride, pad);
        for dtype in [DType::F32, DType::Bf16] {
            for pass in [Pass::Fwd, Pass::Dgrad, Pass::Wgrad] {
                let p = plan(&g, dtype, pass, H100);
                assert!(all.contains(&p.way.variant(pass)), "{p:?}");
                assert!(p.grid.grid.iter().all(|&b| (1..=65_535).contains(&b)), "{p:?}");
                assert!(p.grid.shared_bytes <= 99 * 1024, "{p:?}");
            }
        }
    }
}

#[test]
fn variants_are_distinct() {
    let all = variants();
    assert!(all.iter().enumerate().all(|(i, v)| !all[..i].contains(v)));
}

#[test]
fn tasks_are_short_where_there_are_few() {
    // 64 images of 56x56x96 fill the device with whole columns; one image needs shorter ones.
    assert_eq!(rows_of_task(56, 64 * 7 * 3, H100), 56);
    assert!(rows_of_task(56, 7 * 3, H100) <= 8);
    assert_eq!(rows_of_task(1, 1, H100), 1);
}
