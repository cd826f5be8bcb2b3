//! What the sizes of small cases do not choose: child processes run cases with a tile that is asked for (`DTK_TILE`), and
//! pools and resizing without regions in shared memory (`DTK_UNSTAGED`).

use crate::cases::{self, Ran};
use crate::{fused, limits};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Rows and columns of the blocks of all tiles.
const TILES: [&str; 5] = ["128x256", "128x128", "128x64", "64x64", "64x32"];
/// The variable by which a child runs [`GATHERS`] alone, and the name of that child.
const UNSTAGED: &str = "DTK_UNSTAGED";
/// Operations that gather windows of pixels.
const GATHERS: [&str; 4] = ["adaptive_avg_pool", "avg_pool", "max_pool", "resize"];
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
    if std::env::var_os(UNSTAGED).is_some() {
        let ran = GATHERS.iter().flat_map(|op| cases::of_op(op).expect("the parent has a device"));
        let launched = Launched { tiled: Vec::new(), others: ran.cloned().collect() };
        return std::fs::write(&path, serde_json::to_vec(&launched).unwrap()).unwrap();
    }
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
                .env(
                    if tile == UNSTAGED { UNSTAGED } else { "DTK_TILE" },
                    if tile == UNSTAGED { "1" } else { tile },
                )
                .env(RESULT, &path)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            (tile, path, child.unwrap())
        };
        let children: Vec<_> = TILES.into_iter().chain([UNSTAGED]).map(start).collect();
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
    let (gathers, tiles): (Vec<_>, Vec<_>) = all.iter().partition(|(tile, _)| tile == UNSTAGED);
    for (_, launched) in gathers {
        let unstaged = |r: &&Ran| r.kernel.defines.contains("STAGED=0");
        assert!(launched.others.iter().filter(unstaged).count() > 100, "regions were staged all the same");
    }
    for (tile, launched) in tiles {
        let (bm, bn) = tile.split_once('x').expect("rows x columns");
        let (bm, bn) = (format!("-DBM={bm} "), format!("-DBN={bn} "));
        let with_it = |r: &&Ran| r.kernel.defines.contains(&bm) && r.kernel.defines.contains(&bn);
        let tiled = launched.tiled.iter().flat_map(|(_, _, ran)| ran);
        assert!(tiled.filter(with_it).count() > 0, "nothing was launched with tile {tile}");
    }
}
