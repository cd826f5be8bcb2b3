//! C programs against the header and the library: compiled with the system's compiler, run, and held to what they say.

#[path = "../../tests/common/gpu.rs"]
mod gpu;

use dtk::tensor::SafetensorsFile;
use dtk_capi::{Images, Level, Map, Options, StepResult};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The library, where cargo puts it: beside the test's executable, or one folder above.
fn library() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let folder = executable.parent().unwrap();
    let found = [folder, folder.parent().unwrap()].into_iter().find(|f| f.join("libdtk_capi.so").is_file());
    found.expect("libdtk_capi.so is built with the tests").to_path_buf()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Compiles a program into a folder. Warnings are errors, so that the header stays plain C99.
fn compile(source: &str, dir: &Path) -> PathBuf {
    let (program, library) = (dir.join("program"), library());
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let o = Command::new(compiler)
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"])
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(source))
        .arg("-L")
        .arg(&library)
        .args(["-ldtk_capi", "-lm", "-ldl", "-o"])
        .arg(&program)
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .expect("there is a C compiler; CC names another one");
    assert!(o.status.success(), "{source}: {}", text(&o));
    program
}

fn text(o: &Output) -> String {
    [&o.stdout, &o.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat()
}

/// Runs a program in its folder; gives what it printed.
fn run(command: &mut Command) -> String {
    let o = command.output().unwrap();
    assert!(o.status.success(), "{:?}: {}", o.status, text(&o));
    text(&o)
}

#[test]
fn the_example_distils_and_the_loss_goes_down() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("examples/c/distill.c", dir.path());
    let said = run(Command::new(&program).args(["cpu", "out.safetensors"]).current_dir(dir.path()));
    let losses: Vec<f32> = said
        .lines()
        .filter_map(|l| l.strip_prefix("step ")?.split_once("loss ")?.1.split_once(',')?.0.parse().ok())
        .collect();
    assert_eq!(losses.len(), 12, "{said}");
    assert!(losses.iter().all(|l| l.is_finite()) && losses[11] < 0.9 * losses[0], "{losses:?}");
    assert_eq!(said.lines().filter(|l| l.starts_with("teacher map")).count(), 3, "{said}");
    let file = SafetensorsFile::open(dir.path().join("out.safetensors")).unwrap();
    assert!(file.info("conv1.weight").is_some() && file.metadata()["step"] == "12");
    // The same program gives the same bytes.
    let again = run(Command::new(&program).args(["cpu", "again.safetensors"]).current_dir(dir.path()));
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(read("out.safetensors") == read("again.safetensors"), "{said}{again}");
}

/// The simulator's library, if it and NVRTC are there.
fn simulator() -> Option<PathBuf> {
    let device = gpu::device()?;
    match device.info().simulated {
        true => gpu::simulator(),
        false => None,
    }
}

fn on_simulator(program: &Path, driver: &Path) -> Command {
    let mut c = Command::new(program);
    // NVRTC is looked for from the working folder on.
    c.current_dir(root())
        .env("DTK_CUDA_DRIVER", driver)
        .env("DTK_CACHE_DIR", gpu::CACHE)
        .env("PTXSIM_QUIET", "1");
    c
}

#[test]
fn the_example_runs_on_a_device() {
    let Some(driver) = simulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile("examples/c/distill.c", dir.path());
    let said = run(on_simulator(&program, &driver).arg("cuda").arg(dir.path().join("out.safetensors")));
    assert!(said.contains("step 12: loss") && dir.path().join("out.safetensors").is_file(), "{said}");
}

#[test]
fn a_program_keeps_its_own_context_stream_and_memory() {
    let Some(driver) = simulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile("capi/tests/own_context.c", dir.path());
    let out = dir.path().join("out.safetensors");
    let said = run(on_simulator(&program, &driver).arg(&driver).arg(&out));
    assert!(said.ends_with("OK\n"), "{said}");
    assert!(SafetensorsFile::open(out).unwrap().info("conv1.weight").is_some());
}

#[test]
fn mistakes_are_told_and_nothing_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("capi/tests/mistakes.c", dir.path());
    let said = run(Command::new(program).current_dir(dir.path()));
    assert_eq!(said, "OK\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
}

/// The header is written by hand.
#[test]
fn header_and_library_agree() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(&mut Command::new(compile("capi/tests/layout.c", dir.path())));
    let mut want = vec!["abi 1 1".to_string(), "most levels 8".into()];
    want.push("codes 0 1 2 3 4 5 6, 0 1 2, 0 1, 0 1".into());
    let mut add = |name: &str, value: usize| want.push(format!("{name} {value}"));
    macro_rules! layout {
        ($c:literal $rust:ident: $($field:ident)*) => {
            add($c, size_of::<$rust>());
            $(add(concat!($c, ".", stringify!($field)), offset_of!($rust, $field));)*
        };
    }
    layout!("dtk_options" Options: recipe override_count cuda_context cuda_stream cache_dir epoch_images);
    layout!("dtk_images" Images: memory n first);
    layout!("dtk_map" Map: memory shape strides pixels);
    layout!("dtk_level" Level: cosine);
    layout!("dtk_step_result" StepResult: grad_norm level_count levels);
    assert_eq!(said.lines().collect::<Vec<_>>(), want);
}

/// Every function of the header is in the library and the other way round.
#[test]
fn every_function_is_there() {
    let header = std::fs::read_to_string(root().join("include/dtk.h")).unwrap();
    let sources = std::fs::read_to_string(root().join("capi/src/lib.rs")).unwrap();
    let names = |text: &str, before: &str| {
        let found = text
            .match_indices(before)
            .map(|(at, _)| text[at + before.len() - 4..].split('(').next().unwrap().to_string());
        found.collect::<std::collections::BTreeSet<_>>()
    };
    let exported = names(&sources, "extern \"C\" fn dtk_");
    let declared: std::collections::BTreeSet<String> = header
        .lines()
        .filter(|l| !l.starts_with(' ') && l.contains('('))
        .filter_map(|l| l.split_once('(')?.0.rsplit([' ', '*']).next().map(str::to_string))
        .filter(|n| n.starts_with("dtk_"))
        .collect();
    assert_eq!(declared, exported);
    assert_eq!(exported.len(), 8);
}
