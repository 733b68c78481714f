//! `cargo xtask test`: sets up what the tests need and runs all of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::shell::Shell;
use crate::steps::Steps;
use crate::{build, docs, env, example, experiment, gpu_bundle, install};

/// The parts that can be asked for by name. The last is too large to be run unless it is.
const PARTS: [&str; 13] = [
    "rust",
    "cpp",
    "jax",
    "torch",
    "julia",
    "handover",
    "mpi",
    "examples",
    "cuda-example",
    "experiments",
    "docs",
    "gpu-bundle",
    "torch-oldest",
];

pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    if let Some(unknown) = args.iter().find(|arg| !PARTS.contains(&arg.as_str())) {
        return Err(Error::Usage(format!(
            "there are no tests `{unknown}`; there are {}",
            PARTS.join(", ")
        )));
    }
    let wanted = |part: &str| args.is_empty() || args.iter().any(|arg| arg == part);
    let mut steps = Steps::default();
    let library = steps.run("build the library with its CUDA kernels", || {
        build::library(sh)
    });
    // Without the library nothing else can say anything.
    let Some(library) = library else {
        return steps.finish();
    };
    if wanted("rust") {
        rust(sh, &mut steps);
        bench_report(sh, &mut steps);
    }
    if wanted("cpp") {
        cpp(sh, &mut steps);
    }
    let mock = ["cpp", "jax", "julia", "cuda-example", "gpu-bundle"]
        .into_iter()
        .any(wanted)
        .then(|| steps.run("build the mock driver", || build::mock_driver(sh)))
        .flatten();
    if let Some(mock) = mock.as_deref().filter(|_| wanted("cpp")) {
        cpp_device(sh, &mut steps, mock);
    }
    let handover = (wanted("handover") || wanted("examples"))
        .then(|| steps.run("example: gpt, stopped and resumed", || gpt(sh)))
        .flatten();
    if let Some(folder) = handover.filter(|_| wanted("handover")) {
        handovers(sh, &mut steps, &library, folder);
    }
    if wanted("examples") {
        steps.run("example: muon, its momentum in 32, 8 and 4 bits", || {
            let muon = build::program(sh, "examples/cpp/muon.cpp", "muon", &["-O3"])?;
            sh.run(Command::new(muon).args(["--steps", "40"]))
        });
    }
    if wanted("mpi") {
        mpi(sh, &mut steps);
    }
    if wanted("jax") {
        jax(sh, &mut steps, &library, mock.as_deref());
    }
    if wanted("torch") {
        torch(sh, &mut steps, &library);
    }
    if wanted("julia") {
        julia(sh, &mut steps, &library, mock.as_deref());
    }
    if wanted("cuda-example") {
        cuda_example(sh, &mut steps, mock.as_deref());
    }
    if wanted("experiments") {
        experiments(sh, &mut steps, &library);
    }
    if wanted("docs") {
        docs(sh, &mut steps, &library);
    }
    if wanted("gpu-bundle") {
        gpu_bundle(sh, &mut steps, mock.as_deref());
    }
    if args.iter().any(|arg| arg == "torch-oldest") {
        torch_oldest(sh, &mut steps, &library);
    }
    steps.finish()
}

/// The workspace's own tests; those of the C ABI compile and run C programs, also under valgrind.
fn rust(sh: &Shell, steps: &mut Steps) {
    steps.run("set up valgrind", || env::valgrind::ensure(sh));
    steps.run("rust, C and CUDA under emulation", || {
        sh.run(build::cargo(sh)?.args(["test", "--release", "--workspace"]))
    });
    steps.run("declarations for Python and Julia are fresh", || {
        sh.run(
            Command::new("python3")
                .arg(sh.path("bindings/generate.py"))
                .arg("--check"),
        )
    });
}

/// What makes tables of the measurements of `cargo xtask peers`; nothing is measured here.
fn bench_report(sh: &Shell, steps: &mut Steps) {
    steps.run("figures and tables of the benchmarks", || {
        let mut python = Command::new("python3");
        python.current_dir(sh.path("tests/bench/peers"));
        sh.run(python.args(["-m", "unittest", "--verbose"]))
    });
}

fn cpp(sh: &Shell, steps: &mut Steps) {
    let expected = sh.path("tests/common/conformance.txt");
    let wrapper = "bindings/cpp/tests/wrapper_test.cpp";
    for (name, flags) in [
        ("wrapper", &["-O2", "-Wconversion"][..]),
        ("wrapper-c++20", &["-O2", "-Wconversion", "-std=c++20"]),
        (
            "wrapper-no-exceptions",
            &[
                "-O2",
                "-Wconversion",
                "-fno-exceptions",
                "-DLOWBIT_NO_EXCEPTIONS",
            ],
        ),
        (
            "wrapper-asan",
            &["-O1", "-g", "-fsanitize=address,undefined"],
        ),
    ] {
        steps.run(format!("C++: {name}"), || {
            sh.run(&mut Command::new(build::program(sh, wrapper, name, flags)?))
        });
    }
    steps.run("C++: conformance", || {
        let source = "bindings/cpp/tests/conformance.cpp";
        let program = build::program(sh, source, "conformance", &["-O2"])?;
        let mut command = Command::new(program);
        same_lines(
            &sh.read(command.arg(sh.path("tests/common/cases.txt")))?,
            &expected,
        )
    });
    for (name, source) in [
        ("C: the README's example", "examples/c/adamw.c"),
        ("C++: the page's example", "examples/cpp/adamw.cpp"),
        (
            "C++: the page's update for llm.c",
            "bindings/cpp/tests/llmc.cpp",
        ),
    ] {
        steps.run(name, || {
            let program = build::program(sh, source, "page", &["-O2"])?;
            sh.run(Command::new(program).current_dir(sh.path("target/cxx")))
        });
    }
    steps.run(
        "C++: installed, moved, found by CMake and pkg-config",
        || installed(sh),
    );
    steps.run("C++: the model's gradients", || {
        let program = build::program(sh, "examples/cpp/gpt_check.cpp", "gpt_check", &["-O3"])?;
        sh.run(&mut Command::new(program))
    });
}

/// Processes that train together end with the bits of one.
fn mpi(sh: &Shell, steps: &mut Steps) {
    let Some(mpi) = steps.run("set up MPI", || env::mpi::ensure(sh)) else {
        return;
    };
    steps.run("example: sharded, on 3 processes and then on 2", || {
        let source = "examples/cpp/sharded.cpp";
        let program = build::program_by(&mpi.compiler, sh, source, "sharded", &["-O3"])?;
        let folder = sh.path("target/sharded-test");
        env::remove(&folder)?;
        for (processes, steps, what) in [(3, "4", "--save"), (2, "8", "--resume")] {
            let mut command = mpi.run(processes);
            command.arg(&program).args(["--steps", steps, what]);
            sh.run(command.arg(&folder))?;
        }
        Ok(())
    });
}

fn cpp_device(sh: &Shell, steps: &mut Steps, mock: &Path) {
    steps.run("C++: device pointers, with a mock driver", || {
        let source = "bindings/cpp/tests/device_test.cpp";
        let program = build::program(sh, source, "device", &["-O2", "-Wconversion"])?;
        sh.run(Command::new(program).env("LD_LIBRARY_PATH", mock))
    });
}

/// Consumers outside of the source tree, of an installed package that was moved.
fn installed(sh: &Shell) -> Result<()> {
    let cmake = env::cmake::ensure(sh)?;
    let root = sh.path("target/installed");
    env::remove(&root)?;
    install::install(sh, &root.join("first"))?;
    let prefix = root.join("moved to here");
    std::fs::rename(root.join("first"), &prefix).context(prefix.display())?;

    let build = root.join("build");
    let mut configure = Command::new(&cmake);
    configure
        .arg("-S")
        .arg(sh.path("tests/install"))
        .arg("-B")
        .arg(&build)
        .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()))
        .arg(format!("-DSOURCES={}", sh.path("").display()));
    sh.quiet(&mut configure)?;
    sh.quiet(Command::new(&cmake).arg("--build").arg(&build))?;
    for program in [
        "wrapper-lowbit",
        "wrapper-static",
        "adamw-lowbit",
        "adamw-static",
    ] {
        sh.run(Command::new(build.join(program)).current_dir(&build))?;
    }

    let flags = |arguments: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        sh.read(command.args(arguments).arg("lowbit >= 0.1"))
    };
    let program = root.join("adamw");
    let mut compile = Command::new("sh");
    // The shell takes pkg-config's quoting apart.
    compile.arg("-c").arg(format!(
        "${{CC:-cc}} -std=c99 -Wall -Werror -g -fsanitize=address,undefined {} '{}' {} -Wl,-rpath,'{}' -o '{}'",
        flags(&["--cflags"])?,
        sh.path("examples/c/adamw.c").display(),
        flags(&["--libs"])?,
        prefix.join("lib").display(),
        program.display(),
    ));
    sh.quiet(&mut compile)?;
    sh.run(Command::new(&program).current_dir(&root))?;
    let needed = sh.read(Command::new("readelf").arg("-d").arg(&program))?;
    if !needed.contains("[liblowbit.so.0.1]") {
        return Err(Error::Failed(format!("the program needs\n{needed}")));
    }
    Ok(())
}

/// A short run of the demo that leaves what JAX and Julia continue from.
fn gpt(sh: &Shell) -> Result<PathBuf> {
    let gpt = build::program(sh, "examples/cpp/gpt.cpp", "gpt", &["-O3"])?;
    let (out, handover) = (sh.path("target/gpt-test"), sh.path("target/handover"));
    for folder in [&out, &handover] {
        if folder.exists() {
            std::fs::remove_dir_all(folder).context(folder.display())?;
        }
    }
    let mut command = Command::new(gpt);
    command
        .args(["--steps", "30"])
        .arg("--out")
        .arg(&out)
        .arg("--handover")
        .arg(&handover);
    sh.run(&mut command)?;
    Ok(handover)
}

fn jax(sh: &Shell, steps: &mut Steps, library: &Path, mock: Option<&Path>) {
    let Some(python) = steps.run("set up JAX", || env::python::ensure(sh)) else {
        return;
    };
    let Some(hooks) = steps.run("build with test hooks", || build::library_with_hooks(sh)) else {
        return;
    };
    let tests = sh.path("bindings/python/tests");
    let run_by = |python: &Path, library: &Path, args: &[&str]| {
        let mut command = env::python::command(sh, python, library);
        command.args(args).current_dir(&tests);
        command
    };
    let run = |library: &Path, args: &[&str]| run_by(&python, library, args);
    steps.run("checkpoints: a second reader", || {
        let mut reader = Command::new(&python);
        reader.arg(sh.path("tests/golden/reader.py"));
        sh.run(reader.arg(sh.path("tests/golden/v1")))
    });
    steps.run("JAX: tests", || {
        // With the hooks, as one test makes the library panic.
        let mut tests = run(&hooks, &["-m", "unittest", "discover", "-v"]);
        sh.run(tests.envs(mock.map(|mock| ("LOWBIT_MOCK_DRIVER", mock))))
    });
    steps.run("JAX: tests with the oldest JAX", || {
        let oldest = env::python::ensure_oldest(sh)?;
        let tests = [
            "-m",
            "unittest",
            "-v",
            "test_conformance",
            "test_jax",
            "test_sharding.TestMeshes",
            "test_sharding.TestProcesses",
        ];
        sh.run(&mut run_by(&oldest, &hooks, &tests))
    });
    steps.run("JAX: a wheel, built and installed", || {
        let mut wheel = run(library, &["wheel.py"]);
        sh.run(wheel.arg(library).arg(sh.path("target/wheel-test")))
    });
    steps.run("JAX: conformance", || {
        let lines = sh.read(&mut run(library, &["conformance.py"]))?;
        same_lines(&lines, &sh.path("tests/common/conformance.txt"))
    });
    steps.run("JAX: example, optax.adamw and what takes its place", || {
        let out = sh.path("target/jax-example");
        let mut train = example::jax(sh, library)?;
        train.args(["--steps", "40", "--layers", "1", "--out"]);
        sh.run(train.arg(out))
    });
}

fn torch(sh: &Shell, steps: &mut Steps, library: &Path) {
    let Some(torch) = steps.run("set up PyTorch", || env::torch::ensure(sh)) else {
        return;
    };
    let tests = sh.path("bindings/python/tests/pytorch");
    let run = |python: &Path, args: &[&str]| {
        let mut command = env::python::command(sh, python, library);
        command
            .args(args)
            .env("TORCHINDUCTOR_CACHE_DIR", sh.path("target/inductor"))
            .env("TORCHINDUCTOR_COMPILE_THREADS", "1");
        command
    };
    steps.run("PyTorch: tests", || {
        let mut discover = run(&torch, &["-m", "unittest", "discover", "-v"]);
        sh.run(discover.current_dir(&tests))
    });
    steps.run("PyTorch: Hugging Face's Trainer, in miniature", || {
        let mut trainer = example::with_transformers(sh, library)?;
        trainer.args(["-m", "unittest", "discover", "-v"]);
        sh.run(trainer.current_dir(sh.path("bindings/python/tests/huggingface")))
    });
    steps.run("PyTorch: what a GPU is to show, rehearsed", || {
        let results = sh.path("target/torch-rehearsal");
        env::remove(&results)?;
        std::fs::create_dir_all(&results).context(results.display())?;
        let mut rehearse = run(&torch, &["rehearse.py"]);
        rehearse.arg(results).args(["optimizers", "finetune"]);
        rehearse.env("LOWBIT_REHEARSAL", "cpu");
        sh.run(rehearse.current_dir(sh.path("tests/gpu")))
    });
    steps.run("PyTorch: conversions", || {
        // By JAX's Python, since they are compared with optax.
        let packages = env::torch::packages(sh)?;
        let python = env::python::ensure(sh)?;
        let mut convert = env::python::command_with(sh, &python, library, [packages])?;
        convert.args(["-m", "unittest", "test_convert"]);
        sh.run(convert.current_dir(sh.path("bindings/python/tests")))
    });
    steps.run("PyTorch: example, a model and its adapters", || {
        let example = sh.path("examples/torch/adapters.py");
        sh.run(run(&torch, &[]).arg(example).args(["--steps", "10"]))
    });
    steps.run(
        "C++: example, libtorch with its AdamW and with lowbit",
        || {
            let program = example::libtorch(sh)?;
            sh.run(Command::new(program).args(["--steps", "100"]))
        },
    );
}

/// The same tests, as far as it goes, with the oldest PyTorch that the package supports.
fn torch_oldest(sh: &Shell, steps: &mut Steps, library: &Path) {
    let Some(oldest) = steps.run("set up the oldest PyTorch", || {
        env::torch::ensure_oldest(sh)
    }) else {
        return;
    };
    steps.run("PyTorch: tests with the oldest PyTorch", || {
        let mut discover = env::python::command(sh, &oldest, library);
        discover.args(["-m", "unittest", "discover", "-v"]);
        sh.run(discover.current_dir(sh.path("bindings/python/tests/pytorch")))
    });
}

fn julia(sh: &Shell, steps: &mut Steps, library: &Path, mock: Option<&Path>) {
    let Some(julia) = steps.run("set up Julia", || env::julia::ensure(sh)) else {
        return;
    };
    let Some(hooks) = steps.run("build with test hooks", || build::library_with_hooks(sh)) else {
        return;
    };
    let run = |script: &str| {
        let mut command = env::julia::command(sh, &julia, library, script);
        command.env("LOWBIT_TEST_LIBRARY", &hooks);
        command
    };
    steps.run("Julia: tests", || {
        sh.run(&mut run("bindings/julia/test/runtests.jl"))
    });
    if let Some(mock) = mock {
        steps.run("Julia: device pointers, with a mock driver", || {
            let mut device = run("bindings/julia/test/device.jl");
            sh.run(device.env("LD_LIBRARY_PATH", mock))
        });
    }
    steps.run("Julia: conformance", || {
        let mut conformance = run("bindings/julia/test/conformance.jl");
        sh.run(conformance.arg(sh.path("tests/common/conformance.txt")))
    });
    steps.run("Julia: example, a language model of bytes", || {
        let text = env::experiments::data(sh, "text", None)?;
        let mut train = run("examples/julia/train.jl");
        train.args(["--steps", "60", "--seeds", "1", "--batch", "64"]);
        sh.run(train.arg("--data").arg(text.join("python-doc")))
    });
}

/// A trainer of each language stops after some steps, and each other language goes on from its checkpoint
/// with the same bits.
///
/// `cpp_trainer`: where the C++ example left its checkpoint.
fn handovers(sh: &Shell, steps: &mut Steps, library: &Path, cpp_trainer: PathBuf) {
    let ready = steps.run("set up what trainers are handed over between", || {
        let source = "bindings/cpp/tests/handover.cpp";
        Ok((
            build::program(sh, source, "handover", &["-O2"])?,
            env::python::ensure(sh)?,
            env::torch::ensure(sh)?,
            env::julia::ensure(sh)?,
        ))
    });
    let Some((cpp, jax, torch, julia)) = ready else {
        return;
    };
    let tests = sh.path("bindings/python/tests");
    let by_python = |python: &Path, script: PathBuf| {
        let mut command = env::python::command(sh, python, library);
        command.arg(script);
        command
    };
    let program = |language: &str| match language {
        "C++" => Command::new(&cpp),
        "JAX" => by_python(&jax, tests.join("handover.py")),
        "PyTorch" => by_python(&torch, tests.join("pytorch/handover.py")),
        _ => env::julia::command(sh, &julia, library, "bindings/julia/test/handover.jl"),
    };
    let languages = ["C++", "JAX", "PyTorch", "Julia"];
    for from in languages {
        let folder = if from == "C++" {
            Some(cpp_trainer.clone())
        } else {
            steps.run(format!("{from}: leaves a trainer"), || {
                let folder = sh.path(format!("target/handover-{}", from.to_lowercase()));
                env::remove(&folder)?;
                sh.run(program(from).arg("--write").arg(&folder))?;
                Ok(folder)
            })
        };
        for to in languages {
            if let Some(folder) = folder.as_ref().filter(|_| to != from) {
                steps.run(format!("{to}: goes on from the {from} trainer"), || {
                    sh.run(program(to).arg(folder))
                });
            }
        }
    }
}

/// The trainer in CUDA: nvcc takes all of it; its checks pass with the kernels on the host, and on the
/// GPU where there is one.
fn cuda_example(sh: &Shell, steps: &mut Steps, mock: Option<&Path>) {
    let nvcc = steps.run("set up nvcc", || env::nvcc::ensure(sh));
    if let Some(nvcc) = nvcc {
        steps.run("CUDA: example, compiled by nvcc", || {
            let folder = sh.path("target/cuda-example");
            let mut build = Command::new(sh.path("examples/cuda/build.sh"));
            build.arg(&folder).arg(sh.path("target/release"));
            build.env("NVCC", nvcc).env("ARCH", "sm_80");
            build.env("NVCCFLAGS", "-Werror all-warnings -Xcompiler -Werror");
            sh.run(&mut build)?;
            let mut check = Command::new(folder.join("check"));
            if Path::new("/dev/nvidiactl").exists() {
                println!("with a GPU: the checks pass");
                return sh.run(&mut check);
            }
            println!("without a GPU: the programs say so");
            let mut train = Command::new(folder.join("train"));
            for (program, reason) in [
                (&mut check, "CUDA_UNAVAILABLE: no CUDA driver"),
                (&mut train, "no GPU: CUDA driver version is insufficient"),
            ] {
                let (passed, output) = sh.attempt(program)?;
                if passed || !output.contains(reason) {
                    return Err(Error::Failed(format!("it says\n{output}")));
                }
            }
            Ok(())
        });
    }
    if let Some(mock) = mock {
        steps.run(
            "CUDA: example, its checks with the kernels on the host",
            || {
                let check = build::emulated_cuda_example(sh)?;
                let folders = [mock, check.parent().unwrap_or(mock)];
                let folders = std::env::join_paths(folders)
                    .map_err(|error| Error::Failed(format!("LD_LIBRARY_PATH: {error}")))?;
                let mut run = Command::new(&check);
                run.args(["gradients", "graph", "release", "checkpoint"]);
                sh.run(run.env("LD_LIBRARY_PATH", folders))
            },
        );
    }
}

/// Short training runs on real text.
fn experiments(sh: &Shell, steps: &mut Steps, library: &Path) {
    let ready = steps.run("set up the experiments", || {
        env::experiments::packages(sh)?;
        env::experiments::data(sh, "text", None)
    });
    if ready.is_some() {
        steps.run("experiments: statistics", || {
            let mut tests = experiment::python(sh, library)?;
            sh.run(tests.args(["-m", "unittest", "discover", "-v"]))
        });
        steps.run("experiments: miniature", || {
            let mut run = experiment::python(sh, library)?;
            sh.run(run.args(["run.py", "miniature"]))
        });
    }
}

/// Pages and references of all languages, none with a warning.
fn docs(sh: &Shell, steps: &mut Steps, library: &Path) {
    let ready = steps.run("set up doxygen and pdoc", || {
        env::docs::doxygen(sh)?;
        env::docs::pdoc(sh)
    });
    if ready.is_some() {
        steps.run("documentation", || {
            docs::write(sh, library, build::cargo(sh)?)
        });
    }
}

/// The bundle, unpacked where nothing of the checkout is, asks for a GPU before anything else; and
/// its parts are rehearsed with the mock driver.
fn gpu_bundle(sh: &Shell, steps: &mut Steps, mock: Option<&Path>) {
    let Some(python) = steps.run("set up Python for the GPU bundle", || {
        env::python::ensure(sh)
    }) else {
        return;
    };
    let dir = std::env::temp_dir().join(format!("lowbit-gpu-bundle-{}", std::process::id()));
    let probed = steps.run("GPU bundle: unpacked and probed", || {
        let bundle = gpu_bundle::create(sh)?;
        std::fs::create_dir(&dir).context(dir.display())?;
        probe(sh, &bundle.archive, &dir, &python)
    });
    if let (Some(()), Some(mock)) = (probed, mock) {
        steps.run("GPU bundle: its parts, with a mock driver", || {
            rehearse(sh, &dir, &python, mock)
        });
    }
    steps.run("GPU bundle: removed", || env::remove(&dir));
}

fn rehearse(sh: &Shell, dir: &Path, python: &Path, mock: &Path) -> Result<()> {
    let bundle = dir.join("gpu-bundle");
    let gpu = bundle.join("tests/gpu");
    let paths = [
        sh.path("tests/gpu/rehearsal"),
        bundle.join("bindings/python"),
    ];
    let paths = std::env::join_paths(paths)
        .map_err(|error| Error::Failed(format!("PYTHONPATH: {error}")))?;
    let results = dir.join("rehearsal");
    std::fs::create_dir(&results).context(results.display())?;
    let mut run = Command::new(python);
    run.arg(gpu.join("rehearse.py"))
        .arg(results)
        .args(["parity", "streams", "graph", "xla", "sanitizer"])
        .args([
            "offload",
            "allocations",
            "timing",
            "model",
            "peers",
            "offload_timing",
            // Last, as it limits the memory of the process.
            "budget",
        ])
        .env("LD_LIBRARY_PATH", mock)
        .env("PYTHONPATH", paths)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LOWBIT_LIBRARY", bundle.join("lib/liblowbit.so"));
    sh.run(&mut run)
}

fn probe(sh: &Shell, archive: &Path, dir: &Path, python: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    sh.quiet(tar.arg("-xzf").arg(archive).arg("-C").arg(dir))?;
    let mut run = Command::new(dir.join("gpu-bundle/tests/gpu/run.sh"));
    run.current_dir(dir)
        .env("PYTHON", python)
        .env("OUT", dir.join("results"))
        .env_remove("LOWBIT_LIBRARY");
    if Path::new("/dev/nvidiactl").exists() {
        println!("with a GPU: the probe passes");
        return sh.run(run.arg("probe"));
    }
    println!("without a GPU: the probe says so, and nothing else is run");
    let (passed, output) = sh.attempt(&mut run)?;
    let mut results = Vec::new();
    for entry in std::fs::read_dir(dir.join("results")).context("results")? {
        results.push(entry.context("results")?.file_name());
    }
    results.sort();
    if passed || !output.contains("CUDA_UNAVAILABLE") || results != ["probe.json", "results.json"] {
        return Err(Error::Failed(format!("{results:?}, and it says\n{output}")));
    }
    Ok(())
}

fn same_lines(lines: &str, expected: &Path) -> Result<()> {
    let expected = std::fs::read_to_string(expected).context(expected.display())?;
    if lines.trim() == expected.trim() {
        println!("{expected}{} hashes as expected", expected.lines().count());
        return Ok(());
    }
    Err(Error::Failed(format!(
        "expected\n{expected}\nfound\n{lines}"
    )))
}
