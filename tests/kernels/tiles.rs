//! Every tile, whatever shapes it is made for: child processes run cases with a tile that is asked for (`DTK_TILE`).

use crate::cases::Ran;
use crate::{fused, limits};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Rows and columns of the blocks of all tiles.
const TILES: [&str; 5] = ["128x256", "128x128", "128x64", "64x64", "64x32"];
/// Where a child writes what it launched.
const RESULT: &str = "DTK_KERNELS_RESULT";

/// What a child launches: shapes that fill tiles, and fused convolutions that do not.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Launched {
    /// Cases of [`limits::cases`], with the operations of one pass.
    pub tiled: Vec<(String, u64, Vec<Ran>)>,
    /// The others.
    pub others: Vec<Ran>,
}

/// The work of a child; nothing in any other process.
#[test]
fn child() {
    let Some(path) = std::env::var_os(RESULT) else { return };
    let tiled = limits::compute().expect("the parent has a device, so the child has one");
    let tiled =
        tiled.into_iter().map(|(case, _, _, ran)| (case.label.clone(), case.op.flops(&case.shapes()), ran));
    let launched =
        Launched { tiled: tiled.collect(), others: fused::compute(fused::fills_copies).expect("as above") };
    std::fs::write(&path, serde_json::to_vec(&launched).unwrap()).unwrap();
}

/// What the children launched, one for each tile; `None` without a simulated device. On a card the choice by shape has to do.
pub fn ran() -> Option<&'static [(String, Launched)]> {
    static RAN: OnceLock<Option<Vec<(String, Launched)>>> = OnceLock::new();
    let compute = || {
        if !crate::cases::with_device(|gpu| gpu.info().simulated)? {
            return None;
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let start = |tile: &'static str| {
            let path = dir.join(format!("launched_{tile}_{}.json", std::process::id()));
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["tiles::child", "--exact", "--nocapture"])
                .env("DTK_TILE", tile)
                .env(RESULT, &path)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            (tile, path, child.unwrap())
        };
        let children: Vec<_> = TILES.into_iter().map(start).collect();
        let end = |(tile, path, child): (&str, std::path::PathBuf, std::process::Child)| {
            let out = child.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(out.status.success(), "tile {tile}: {}{}", text(&out.stdout), text(&out.stderr));
            let launched = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            std::fs::remove_file(&path).unwrap();
            (tile.to_string(), launched)
        };
        Some(children.into_iter().map(end).collect())
    };
    RAN.get_or_init(compute).as_deref()
}

#[test]
fn every_tile_computes_what_it_should() {
    let Some(all) = ran() else { return };
    for (tile, launched) in all {
        let (bm, bn) = tile.split_once('x').expect("rows x columns");
        let (bm, bn) = (format!("-DBM={bm} "), format!("-DBN={bn} "));
        let with_it = |r: &&Ran| r.kernel.defines.contains(&bm) && r.kernel.defines.contains(&bn);
        let tiled = launched.tiled.iter().flat_map(|(_, _, ran)| ran);
        assert!(tiled.filter(with_it).count() > 0, "nothing was launched with tile {tile}");
    }
}
