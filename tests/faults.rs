//! Whatever happens to a process that saves, the old checkpoint or the new one is there, whole.
//!
//! `cargo test --release --test faults -- --nocapture` prints what was run and lost; with
//! `LOWBIT_LONG=1` it kills and fails a thousand times.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::exit,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "checkpoints work on raw buffers")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Model, word};
use lowbit::Variant;
use lowbit::checkpoint::Checkpoint;
use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;

/// What a child is told: `save STEP`, `loop FIRST` or `load`, and the path.
const TASK: &str = "LOWBIT_FAULTS_TASK";
const PATH: &str = "LOWBIT_FAULTS_PATH";

fn long() -> bool {
    std::env::var_os("LOWBIT_LONG").is_some()
}

/// A state of 4 MB, all of whose bytes say which step it is.
fn model(step: i64) -> Model {
    let spec = Spec::preset("adamw4").unwrap();
    let tensors = (0..4)
        .map(|i| TensorInfo::new(format!("t{i}"), &[1000, 1000], Dtype::F32))
        .collect();
    let mut model = Model::new(Variant::Auto, 1, &spec, tensors);
    for memory in &mut model.state {
        memory.as_mut().fill(step as u8);
    }
    model
}

fn save(step: i64, path: &Path) -> Result<()> {
    let model = model(step);
    // SAFETY: all memory is the model's.
    unsafe {
        model
            .plan
            .save_checkpoint(&model.buffers(), step, path, 0, None, std::ptr::null_mut())
    }
}

/// The step of a sound checkpoint whose states are all of that step.
fn load(path: &Path) -> Result<i64> {
    let model = model(-1);
    let state = model.buffers();
    // SAFETY: all memory is the model's.
    let info = unsafe {
        model
            .plan
            .load_checkpoint(path, &state, std::ptr::null_mut())
    };
    let wanted = match &info {
        Ok(info) => info.step as u8,
        // Refused: as it was.
        Err(error) if error.to_string().contains("in part written") => {
            return Err(info.unwrap_err());
        }
        Err(_) => 0xff,
    };
    for memory in &model.state {
        assert!(memory.as_ref().iter().all(|byte| *byte == wanted));
    }
    info.map(|info| info.step)
}

/// Not a test of its own: what the processes do that the tests below start.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let path = PathBuf::from(std::env::var_os(PATH).unwrap());
    let (verb, number) = task.split_once(' ').unwrap_or((&task, "0"));
    let number: i64 = number.parse().unwrap();
    let result = match verb {
        "save" => save(number, &path).map(|()| number),
        "load" => load(&path),
        _ => {
            // Steps of this process: FIRST, FIRST + 2, ...
            for round in 0_i64.. {
                let step = (number + 2 * round) % 200;
                println!("saving {step}");
                save(step, &path).unwrap();
            }
            return;
        }
    };
    match result {
        Ok(step) => println!("status OK {step}"),
        Err(error) => println!("status {:?} {error}", error.status()),
    }
}

fn start(task: &str, path: &Path, preload: Option<(&Path, &str)>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .env(PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some((library, fault)) = preload {
        command
            .env("LD_PRELOAD", library)
            .env("LOWBIT_FAULT", fault);
    }
    command.spawn().unwrap()
}

/// What a `save` or `load` child said.
fn outcome(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("status "));
    line.unwrap_or_else(|| panic!("a child said {text}"))
        .1
        .to_owned()
}

/// Files of the folder that nobody asked for.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.to_string_lossy().ends_with(".partial"))
        .collect()
}

#[test]
fn kills_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    save(0, &path).unwrap();
    let start_time = Instant::now();
    save(0, &path).unwrap();
    // Kills fall into about three saves.
    let span = 3 * start_time.elapsed().as_micros() as u64;
    let runs = if long() { 1000 } else { 60 };
    let (mut inside, mut advanced, mut last) = (0, 0, 0);
    for run in 0..runs {
        let first = (last + 1) % 200;
        let mut child = start(&format!("loop {first}"), &path, None);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let saving = lines.find(|line| line.as_ref().unwrap().contains("saving"));
        assert!(saving.is_some(), "the child saves nothing");
        std::thread::sleep(Duration::from_micros(word(1, run) % span));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        for partial in leftovers(folder.path()) {
            inside += 1;
            std::fs::remove_file(partial).unwrap();
        }
        // Sound, and all of one step: the one before, or one that the child has written.
        let step = load(&path).unwrap();
        advanced += i32::from(step != last);
        last = step;
    }
    println!(
        "kill -9: {runs} runs, {inside} killed inside of a save, {advanced} left a new checkpoint, {} \
         the old one, 0 lost",
        runs - advanced as u64
    );
    assert!(inside > 0, "no kill fell into a save");
}

#[test]
fn two_processes_may_save_to_one_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    save(0, &path).unwrap();
    let mut children = [start("loop 0", &path, None), start("loop 1", &path, None)];
    // Nobody reads what they say; a full pipe would stop them.
    let readers: Vec<_> = children
        .iter_mut()
        .map(|child| {
            let out = child.stdout.take().unwrap();
            std::thread::spawn(move || BufReader::new(out).lines().count())
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(if long() { 30 } else { 2 });
    let (mut loads, mut steps) = (0, std::collections::BTreeSet::new());
    while Instant::now() < end {
        steps.insert(load(&path).unwrap());
        loads += 1;
    }
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let saves: usize = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .sum();
    load(&path).unwrap();
    assert!(steps.iter().any(|step| step % 2 == 0) && steps.iter().any(|step| step % 2 == 1));
    println!("two processes: {saves} saves to one path, {loads} loads meanwhile, all sound");
}

/// Compiles the library of faults.
fn faulty_io(folder: &Path) -> PathBuf {
    let library = folder.join("faulty_io.so");
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/faulty_io.c");
    let output = Command::new(&cc)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg(source)
        .args(["-ldl", "-o"])
        .arg(&library)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    library
}

#[test]
fn failing_system_calls_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let library = faulty_io(folder.path());
    let path = folder.path().join("state");
    let (enospc, eio, eintr, eacces) = (28, 5, 4, 13);
    let (mut faults, mut refused, mut worked) = (0, 0, 0);
    save(0, &path).unwrap();
    let mut last = 0;
    for (function, codes, most) in [
        ("write", &[enospc, eio, eintr, 0][..], 8),
        ("fsync", &[eio, enospc], 2),
        ("rename", &[eio, enospc, eacces], 1),
        ("open", &[enospc, eacces], 1),
    ] {
        // Every call of a save in the long run; in the short one the first and the last few.
        for nth in (1..=most).filter(|nth| long() || *nth <= 2 || *nth == most) {
            for &code in codes {
                let next = (last + 1) % 200;
                let fault = format!("{function} {nth} {code}");
                let said = outcome(start(
                    &format!("save {next}"),
                    &path,
                    Some((&library, &fault)),
                ));
                faults += 1;
                let step = load(&path).unwrap();
                if said.starts_with("OK") {
                    // A short or interrupted call goes on; so does a save with fewer calls.
                    assert_eq!(step, next, "{fault}: {said}");
                    worked += 1;
                } else {
                    assert!(said.starts_with("Io "), "{fault}: {said}");
                    assert!(said.contains("state"), "{fault} names no path: {said}");
                    assert!(step == last || step == next, "{fault}: {said}");
                    refused += 1;
                }
                let left = leftovers(folder.path());
                assert!(left.is_empty(), "{fault} left {left:?}");
                last = step;
            }
        }
    }
    let (mut reads, mut refused_reads) = (0, 0);
    for nth in (1..=16).filter(|nth| long() || *nth <= 4 || nth % 5 == 0) {
        for code in [eio, eintr, 0] {
            let fault = format!("pread {nth} {code}");
            let said = outcome(start("load", &path, Some((&library, &fault))));
            reads += 1;
            if code == eio {
                assert!(said.starts_with("Io ") || said.starts_with("OK"), "{said}");
            } else {
                assert_eq!(said, format!("OK {last}"), "{fault}");
            }
            refused_reads += i32::from(!said.starts_with("OK"));
        }
    }
    assert!(refused >= 5 && refused_reads >= 2);
    println!(
        "failing calls: {faults} in saves ({refused} refused, {worked} went on), {reads} in loads \
         ({refused_reads} refused), 0 lost"
    );
}

#[test]
fn paths_of_all_kinds() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["with spaces", "größe.safetensors", "状態", "a'b\"c", "-x"] {
        let path = folder.path().join(name);
        save(3, &path).unwrap();
        assert_eq!(load(&path).unwrap(), 3);
        let sub = folder.path().join(format!("{name} folder"));
        std::fs::create_dir(&sub).unwrap();
        save(4, &sub.join(name)).unwrap();
        assert_eq!(load(&sub.join(name)).unwrap(), 4);
    }
    // A folder that cannot be written to, also by root.
    let mut refused = vec![
        PathBuf::from("/proc/state"),
        folder.path().join("none/state"),
    ];
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        use std::os::unix::fs::PermissionsExt as _;
        let locked = folder.path().join("locked");
        std::fs::create_dir(&locked).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
        refused.push(locked.join("state"));
    }
    for path in refused {
        let error = save(1, &path).unwrap_err();
        assert_eq!(error.status(), Status::Io);
        assert!(error.to_string().contains("state"), "{error}");
        let error = load(&path).unwrap_err();
        assert_eq!(error.status(), Status::Io);
        assert!(error.to_string().contains("state"), "{error}");
    }
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert_eq!(error.status(), Status::Io, "{error}");
}
