use super::*;
use std::collections::BTreeSet;

fn resnet50() -> Vec<String> {
    const BN: [&str; 5] = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
    let mut keys = vec!["conv1.weight".to_string()];
    keys.extend(BN.iter().map(|l| format!("bn1.{l}")));
    for (stage, blocks) in [(1, 3), (2, 4), (3, 6), (4, 3)] {
        for b in 0..blocks {
            let p = format!("layer{stage}.{b}");
            for n in 1..=3 {
                keys.push(format!("{p}.conv{n}.weight"));
                keys.extend(BN.iter().map(|l| format!("{p}.bn{n}.{l}")));
            }
            if b == 0 {
                keys.push(format!("{p}.downsample.0.weight"));
                keys.extend(BN.iter().map(|l| format!("{p}.downsample.1.{l}")));
            }
        }
    }
    keys.extend(["fc.weight".to_string(), "fc.bias".to_string()]);
    keys
}

fn convnext_base() -> Vec<String> {
    let mut keys = Vec::new();
    let mut two = |p: String| keys.extend(["weight", "bias"].map(|l| format!("{p}.{l}")));
    two("stem.0".into());
    two("stem.1".into());
    let mut gammas = Vec::new();
    for (s, blocks) in [(0, 3), (1, 3), (2, 27), (3, 3)] {
        if s > 0 {
            two(format!("stages.{s}.downsample.0"));
            two(format!("stages.{s}.downsample.1"));
        }
        for b in 0..blocks {
            for part in ["conv_dw", "norm", "mlp.fc1", "mlp.fc2"] {
                two(format!("stages.{s}.blocks.{b}.{part}"));
            }
            gammas.push(format!("stages.{s}.blocks.{b}.gamma"));
        }
    }
    two("head.norm".into());
    two("head.fc".into());
    keys.extend(gammas);
    keys
}

/// The numbers of tensors are those of the published checkpoints.
#[test]
fn key_counts() {
    assert_eq!((resnet50().len(), convnext_base().len()), (320, 344));
}

#[test]
fn full_lists_round_trip() {
    for (family, keys) in [(Family::ResNet, resnet50()), (Family::ConvNext, convnext_base())] {
        for layout in Layout::ALL {
            let absent = matches!(
                (family, layout),
                (Family::ResNet, Layout::Facebook) | (Family::ConvNext, Layout::Detectron2)
            );
            let no_head = matches!(layout, Layout::Mmseg | Layout::Detectron2);
            let mut seen = BTreeSet::new();
            for key in &keys {
                let head = key.starts_with("fc.") || key.starts_with("head.fc.");
                let there = from_dtk(family, layout, key);
                assert_eq!(there.is_none(), absent || (no_head && head), "{layout} {key}");
                let Some(there) = there else { continue };
                assert_eq!(
                    to_dtk(family, layout, &there.name).unwrap().name,
                    *key,
                    "{layout} {}",
                    there.name
                );
                assert!(seen.insert(there.name.clone()), "{layout} has {} twice", there.name);
            }
            let same = layout == Layout::Timm || (layout, family) == (Layout::Torchvision, Family::ResNet);
            let found = detect(family, seen.iter().map(String::as_str));
            assert_eq!(found, (!absent).then_some(if same { Layout::Timm } else { layout }));
        }
    }
}

/// Literal names, so that a mistake made in both directions shows.
#[test]
fn known_names() {
    use Layout::*;
    let resnet = [
        ("conv1.weight", Detectron2, "stem.conv1.weight"),
        ("bn1.running_var", Detectron2, "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", Detectron2, "res2.0.conv2.weight"),
        ("layer4.2.bn3.bias", Detectron2, "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", Detectron2, "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.weight", Detectron2, "res3.0.shortcut.norm.weight"),
        ("layer3.22.bn1.num_batches_tracked", Mmseg, "backbone.layer3.22.bn1.num_batches_tracked"),
        ("fc.weight", Torchvision, "fc.weight"),
    ];
    let convnext = [
        ("stem.0.weight", Facebook, "downsample_layers.0.0.weight"),
        ("stem.1.bias", Torchvision, "features.0.1.bias"),
        ("stem.1.bias", Mmseg, "backbone.downsample_layers.0.1.bias"),
        ("stages.1.downsample.0.weight", Facebook, "downsample_layers.1.0.weight"),
        ("stages.3.downsample.1.weight", Torchvision, "features.6.1.weight"),
        ("stages.2.blocks.26.conv_dw.weight", Torchvision, "features.5.26.block.0.weight"),
        ("stages.0.blocks.0.norm.bias", Torchvision, "features.1.0.block.2.bias"),
        ("stages.3.blocks.2.mlp.fc2.bias", Torchvision, "features.7.2.block.5.bias"),
        ("stages.2.blocks.5.mlp.fc1.weight", Facebook, "stages.2.5.pwconv1.weight"),
        ("stages.2.blocks.5.mlp.fc2.weight", Mmseg, "backbone.stages.2.5.pointwise_conv2.weight"),
        ("stages.2.blocks.5.conv_dw.weight", Mmseg, "backbone.stages.2.5.depthwise_conv.weight"),
        ("stages.2.blocks.5.gamma", Facebook, "stages.2.5.gamma"),
        ("stages.2.blocks.5.gamma", Torchvision, "features.5.5.layer_scale"),
        ("head.norm.weight", Facebook, "norm.weight"),
        ("head.norm.weight", Torchvision, "classifier.0.weight"),
        ("head.norm.weight", Mmseg, "backbone.norm3.weight"),
        ("head.fc.bias", Facebook, "head.bias"),
        ("head.fc.bias", Torchvision, "classifier.2.bias"),
    ];
    for (family, list) in [(Family::ResNet, &resnet[..]), (Family::ConvNext, &convnext[..])] {
        for (dtk, layout, name) in list {
            assert_eq!(from_dtk(family, *layout, dtk).unwrap().name, *name);
            assert_eq!(to_dtk(family, *layout, name).unwrap().name, *dtk);
        }
    }
    let fpn = to_dtk(Family::ResNet, Detectron2, "backbone.bottom_up.res2.0.conv1.weight").unwrap();
    assert_eq!(fpn.name, "layer1.0.conv1.weight");
}

#[test]
fn foreign_keys_have_no_name() {
    for layout in Layout::ALL {
        for key in [
            "",
            ".",
            "conv1",
            "conv1.bias",
            "layer0.0.conv1.weight",
            "layer5.0.conv1.weight",
            "layer1.01.conv1.weight",
            "layer1.0.conv4.weight",
            "layer1.0.downsample.2.weight",
            "res1.0.conv1.weight",
            "res6.0.conv1.weight",
            "stages.0.downsample.0.weight",
            "stages.4.blocks.0.gamma",
            "stages.0.blocks.0.gamma.weight",
            "features.8.0.layer_scale",
            "downsample_layers.4.0.weight",
            "backbone.norm2.weight",
            "decode_head.conv_seg.weight",
        ] {
            for family in [Family::ResNet, Family::ConvNext] {
                assert_eq!(to_dtk(family, layout, key), None, "{layout} {key}");
                assert_eq!(from_dtk(family, layout, key), None, "{layout} {key}");
            }
        }
    }
    assert_eq!(detect(Family::ResNet, ["a", "b.c"]), None);
    assert_eq!(detect(Family::ResNet, []), None);
}

#[test]
fn shapes_change_along() {
    let m = from_dtk(Family::ConvNext, Layout::Torchvision, "stages.0.blocks.0.gamma").unwrap();
    assert_eq!(m.reshape.shape([8].into()).unwrap(), Shape::from([8, 1, 1]));
    let back = to_dtk(Family::ConvNext, Layout::Torchvision, &m.name).unwrap();
    assert_eq!(back.reshape.shape([8, 1, 1].into()).unwrap(), Shape::from([8]));
    assert!(back.reshape.shape([8, 2, 1].into()).unwrap_err().is_shape());
    assert!(back.reshape.shape(Shape::SCALAR).unwrap_err().is_shape());
    assert!(m.reshape.shape([1, 1, 1, 1].into()).unwrap_err().is_shape());
    let fc = to_dtk(Family::ConvNext, Layout::Mmseg, "backbone.stages.0.0.pointwise_conv1.weight").unwrap();
    assert_eq!(fc.reshape.shape([8, 2, 1, 1].into()).unwrap(), Shape::from([8, 2]));
    assert_eq!(fc.reshape.shape([8, 2].into()).unwrap(), Shape::from([8, 2]));
    assert_eq!(Reshape::Keep.shape([2, 1].into()).unwrap(), Shape::from([2, 1]));
}

#[test]
fn translate_reads_renames_and_reshapes() {
    let gamma = Tensor::from_vec([2, 1, 1], vec![1.0f32, 2.0]).unwrap();
    let tensors = BTreeMap::from([
        ("features.1.0.layer_scale".to_string(), gamma),
        ("features.0.1.bias".to_string(), Tensor::zeros([2])),
        ("something.else".to_string(), Tensor::zeros([1])),
    ]);
    let found =
        translate(Family::ConvNext, Layout::Torchvision, &StateDict::from_tensors("x", tensors)).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["stages.0.blocks.0.gamma", "stem.1.bias"]);
    assert_eq!(found["stages.0.blocks.0.gamma"].shape(), Shape::from([2]));
    let twice = ["res2.0.conv1.weight", "backbone.res2.0.conv1.weight"];
    let twice = twice.into_iter().map(|k| (k.to_string(), Tensor::zeros([1]))).collect();
    let e = translate(Family::ResNet, Layout::Detectron2, &StateDict::from_tensors("x", twice)).unwrap_err();
    assert!(e.is_checkpoint(), "{e}");
}

#[test]
fn export_is_the_inverse_of_translate() {
    let ours = BTreeMap::from([
        ("stages.0.blocks.0.gamma".to_string(), Tensor::from_vec([2], vec![1.0f32, 2.0]).unwrap()),
        ("head.fc.bias".to_string(), Tensor::zeros([3])),
    ]);
    for layout in [Layout::Timm, Layout::Torchvision, Layout::Facebook, Layout::Mmseg] {
        let theirs = export(Family::ConvNext, layout, &ours).unwrap();
        assert_eq!(theirs.len(), if layout == Layout::Mmseg { 1 } else { 2 });
        let back = translate(Family::ConvNext, layout, &StateDict::from_tensors("x", theirs)).unwrap();
        let gamma = &back["stages.0.blocks.0.gamma"];
        assert_eq!((gamma.shape(), gamma.f32s().unwrap()), (Shape::from([2]), &[1.0, 2.0][..]));
        assert_eq!(layout.to_string().parse::<Layout>().unwrap(), layout);
    }
    assert!(export(Family::ConvNext, Layout::Detectron2, &ours).unwrap_err().is_usage());
    assert!("keras".parse::<Layout>().unwrap_err().remedy().unwrap().contains("detectron2"));
}
