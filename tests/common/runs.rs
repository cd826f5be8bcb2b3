//! Runs on a device beside runs on the CPU: their folders, and how far apart they end.

use dtk::tensor::SafetensorsFile;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: the simulator's report is of the whole process.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary folder, and the places of three runs in it.
pub fn folders() -> (tempfile::TempDir, [PathBuf; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|n| dir.path().join(n));
    (dir, paths)
}

/// Largest difference of the tensors of two files, by the largest magnitude of each, and where it is.
pub fn distance(a: &Path, b: &Path) -> (f32, String) {
    let (a, b) = (SafetensorsFile::open(a).unwrap(), SafetensorsFile::open(b).unwrap());
    assert!(a.names().count() > 10 && a.names().eq(b.names()), "the files hold other tensors");
    let mut worst = (0.0f32, String::new());
    for name in a.names() {
        let (x, y) = (a.get(name).unwrap(), b.get(name).unwrap());
        let (Ok(x), Ok(y)) = (x.f32s(), y.f32s()) else {
            assert_eq!(x.data::<i64>().unwrap(), y.data::<i64>().unwrap(), "{name}");
            continue;
        };
        let largest = y.iter().fold(0.0f32, |m, v| m.max(v.abs())).max(1e-3);
        let off = x
            .iter()
            .zip(y)
            .fold(0.0f32, |m, (x, y)| if (x - y).is_finite() { m.max((x - y).abs()) } else { f32::INFINITY });
        if off / largest > worst.0 {
            worst = (off / largest, name.to_string());
        }
    }
    worst
}
