//! The device of the tests: a card where one is asked for, else the simulator.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

use dtk::gpu::nvrtc::Nvrtc;
use dtk::gpu::{Gpu, Options};
use std::path::PathBuf;

/// The simulator's library, where cargo puts it: beside the test's executable, or one folder above.
pub fn simulator() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    let folder = executable.parent()?;
    let places = [folder.join("libptxsim_driver.so"), folder.join("../libptxsim_driver.so")];
    places.into_iter().find(|p| p.is_file())
}

/// Compiled kernels of the tests: kept, keyed by content, below the target folder.
pub const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/kernel_cache");

/// The card that `DTK_TEST_DEVICE=cuda[:N]` names, else the simulated one; `None`, with the reason printed, where something
/// is missing, which is an error where `DTK_REQUIRE_SIMULATOR` is 1. Its launches are recorded, for [`clean_after_launches`].
pub fn device() -> Option<Gpu> {
    let gpu = device_with(Options::default())?;
    gpu.record_launches();
    Some(gpu)
}

/// As [`device`], opened with these options; the driver is chosen here, and where no folder is named, kernels are kept in
/// [`CACHE`].
pub fn device_with(mut options: Options) -> Option<Gpu> {
    options.cache_dir.get_or_insert_with(|| CACHE.into());
    let found = match std::env::var("DTK_TEST_DEVICE") {
        Ok(name) if !name.is_empty() => card(&name, options),
        _ => simulated(options),
    };
    match found {
        Ok(gpu) => Some(gpu),
        Err(why) => {
            let required = std::env::var("DTK_REQUIRE_SIMULATOR").is_ok_and(|v| v == "1");
            assert!(!required, "DTK_REQUIRE_SIMULATOR=1, but: {why}");
            println!("skipped: {why}");
            None
        }
    }
}

fn card(name: &str, options: Options) -> Result<Gpu, String> {
    let number = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
        None => None,
    };
    let ordinal = number.unwrap_or_else(|| panic!("DTK_TEST_DEVICE={name}: write cuda or cuda:N"));
    // A card that was asked for and does not work is no reason to skip.
    Ok(Gpu::open_with(ordinal, options).unwrap_or_else(|e| panic!("DTK_TEST_DEVICE={name}: {e}")))
}

fn simulated(options: Options) -> Result<Gpu, String> {
    let library = simulator().ok_or("libptxsim_driver.so is not beside the test's executable")?;
    Nvrtc::find().map_err(|e| e.to_string())?;
    let options = Options { driver: Some(library), ..options };
    let gpu = Gpu::open_with(0, options).map_err(|e| e.to_string())?;
    assert!(gpu.info().simulated, "{gpu:?} is not the simulator");
    Ok(gpu)
}

/// Asserts that the simulator has found nothing, whichever test of this process launched it. Always holds on a card.
///
/// Nothing is cleared: tests run beside each other on one simulated device, and one that cleared the report would take the
/// findings of another.
pub fn clean(gpu: &Gpu) {
    let Some(text) = gpu.report_json() else { return };
    let report: serde_json::Value = serde_json::from_str(&text).expect("the simulator writes JSON");
    assert_eq!(report["findings"], 0, "{text}");
}

/// As [`clean`]; and through this handle something has to have been launched since it was asked last. The handle records its
/// launches: that of [`device`] does.
pub fn clean_after_launches(gpu: &Gpu) {
    assert!(!gpu.take_launches().is_empty(), "no kernel ran on the device");
    clean(gpu);
}
