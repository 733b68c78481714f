//! Link settings of the shared library, and the CUDA kernels.
//!
//! The kernels (`cuda/*.cu`) are compiled to PTX by NVRTC or nvcc, that is assembled for the common
//! architectures, and both are embedded, compressed; no GPU, driver or toolkit header is needed. Where no
//! compiler is found the library is built without kernels, and its CUDA backend says so;
//! `LOWBIT_REQUIRE_CUDA_KERNELS=1` makes it an error.
//! The compiler is the first of:
//!
//! 1. `LOWBIT_NVRTC`: libnvrtc, or a folder that has it
//! 2. `CUDA_HOME`: libnvrtc in its `lib64` or `lib`
//! 3. `target/env/nvrtc`, where `cargo xtask env nvrtc` installs it
//! 4. nvcc on `PATH`
//!
//! `LOWBIT_KERNEL_CACHE` names a folder where what was compiled is kept for other builds, by its content.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::{env, fs};

/// The oldest architecture; drivers compile its PTX for all later ones.
const ARCH: &str = "compute_80";

/// The kernels spell out every fused operation, so the compiler may not form others.
const OPTIONS: [&str; 2] = ["--fmad=false", "--std=c++17"];

/// The common architectures: what the assembler knows of them is embedded, so that their drivers need
/// not compile.
const ASSEMBLED: [u32; 6] = [80, 86, 89, 90, 100, 120];

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    link_settings(&out_dir)?;
    embed_kernels(&out_dir)
}

fn link_settings(out_dir: &Path) -> Result<(), String> {
    let target = |key| env::var(key).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") != "linux" {
        return Ok(());
    }
    // Only our own symbols leave the library, not the C symbols of its dependencies.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    if target("CARGO_CFG_TARGET_ENV") != "gnu" {
        return Ok(());
    }
    // The unwinder is linked statically. Hosts that load with RTLD_DEEPBIND (Julia) would bind a
    // shared one to their own copy of libgcc_s, whose tables their JIT upsets: a panic on its way
    // to the guard at the C boundary would then abort the process. std asks for `-lgcc_s`; this
    // linker script, found first, answers with the static archives.
    let dir = out_dir.join("static-unwinder");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    write(
        &dir.join("libgcc_s.so"),
        "GROUP ( -lgcc_eh -lgcc )\n".as_bytes(),
    )?;
    println!("cargo::rustc-link-search=native={}", dir.display());
    Ok(())
}

/// Writes one `.ptx` per `.cu`, what is embedded of it, and `cuda_kernels.rs`, which embeds it.
fn embed_kernels(out_dir: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=LOWBIT_REQUIRE_CUDA_KERNELS");
    let text = match Compiler::find()? {
        Ok(compiler) => {
            let cuda = compiler.version()?;
            let modules = modules(&compiler, cuda, out_dir)?;
            format!("Ok(Embedded {{ cuda: {cuda}, modules: &[{modules}] }})")
        }
        Err(missing) => {
            let reason = format!("the library was built without CUDA kernels: {missing}");
            if env::var_os("LOWBIT_REQUIRE_CUDA_KERNELS").is_some_and(|value| value == "1") {
                return Err(format!("LOWBIT_REQUIRE_CUDA_KERNELS is 1, but {missing}"));
            }
            println!("cargo::warning={reason}");
            format!("Err({reason:?})")
        }
    };
    write(
        &out_dir.join("cuda_kernels.rs"),
        format!("const EMBEDDED: std::result::Result<Embedded, &str> = {text};\n").as_bytes(),
    )
}

/// The Rust text of all modules: PTX, and one image for each architecture.
fn modules(compiler: &Compiler, cuda: i32, out_dir: &Path) -> Result<String, String> {
    let assembler = Assembler::find()?;
    let architectures = assembler
        .as_ref()
        .map_or(&[][..], |found| &found.architectures);
    let headers = read_all(&sources("cuh")?)?;
    let mut text = String::new();
    let (sender, receiver) = mpsc::channel::<(PathBuf, Option<u32>)>();
    let receiver = Mutex::new(receiver);
    // NVRTC compiles one file at a time, whoever calls it: what is compiled is assembled on all processors
    // meanwhile.
    let work = || -> Result<(), String> {
        loop {
            let next = receiver.lock().map_err(|error| error.to_string())?.recv();
            let Ok((ptx, architecture)) = next else {
                return Ok(());
            };
            let image = image_of(&ptx, architecture);
            if let (Some(number), Some(assembler)) = (architecture, &assembler) {
                let inputs = (&assembler.version, number, read(&ptx)?);
                let files = [&*image, &usage_of(&image)];
                cached(&inputs, &files, || assembler.assemble(&ptx, number, &image))?;
            }
            let mut bytes = read(&image)?;
            if architecture.is_none() {
                // The driver takes a string.
                bytes.push(0);
            }
            write(
                &compressed(&image),
                &miniz_oxide::deflate::compress_to_vec(&bytes, 8),
            )?;
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let compiled = sources("cu")?.into_iter().try_for_each(|source| {
            let name = source.file_stem().unwrap_or_default().to_string_lossy();
            let ptx = out_dir.join(format!("{name}.ptx"));
            let inputs = (cuda, ARCH, OPTIONS, &headers, read(&source)?);
            cached(&inputs, &[&ptx], || {
                write(&ptx, &compiler.compile(&source, &ptx)?)
            })?;
            let images: String = architectures
                .iter()
                .map(|number| {
                    let file = compressed(&image_of(&ptx, Some(*number)));
                    format!("({number}, include_bytes!({file:?})), ")
                })
                .collect();
            let file = compressed(&ptx);
            text += &format!(
                "Module {{ name: {name:?}, ptx: include_bytes!({file:?}), images: &[{images}] }}, "
            );
            let images = architectures.iter().copied().map(Some);
            for architecture in images.chain([None]) {
                sender
                    .send((ptx.clone(), architecture))
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        drop(sender);
        let assembled = all.into_iter().map(|one| match one.join() {
            Ok(result) => result,
            Err(_) => Err("embedding the kernels ended in a panic".to_owned()),
        });
        std::iter::once(compiled)
            .chain(assembled)
            .collect::<Result<(), String>>()
    })
    .map(|()| text)
}

/// `x.ptx` itself, or `x.80.cubin` beside it.
fn image_of(ptx: &Path, architecture: Option<u32>) -> PathBuf {
    match architecture {
        Some(number) => ptx.with_extension(format!("{number}.cubin")),
        None => ptx.to_owned(),
    }
}

fn compressed(image: &Path) -> PathBuf {
    with_suffix(image, ".z")
}

/// What the assembler said of an image.
fn usage_of(image: &Path) -> PathBuf {
    with_suffix(image, ".txt")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// NVIDIA's assembler.
struct Assembler {
    ptxas: PathBuf,
    /// As it prints it.
    version: String,
    /// Those of [`ASSEMBLED`] that it knows.
    architectures: Vec<u32>,
}

impl Assembler {
    /// Beside the compiler, or on `PATH`.
    fn find() -> Result<Option<Self>, String> {
        let variable = |key| env::var_os(key).map(PathBuf::from);
        let installed = variable("CARGO_MANIFEST_DIR").map(|dir| dir.join("target/env/nvrtc"));
        let ptxas = [variable("LOWBIT_NVRTC"), variable("CUDA_HOME"), installed]
            .into_iter()
            .flatten()
            .map(|dir| dir.join("bin"))
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default()))
            .map(|dir| dir.join("ptxas"))
            .find(|file| file.is_file());
        let Some(ptxas) = ptxas else {
            println!(
                "cargo::warning=no ptxas was found: the CUDA kernels are embedded as PTX alone, \
                 which drivers compile when a plan is made"
            );
            return Ok(None);
        };
        let known = run(Command::new(&ptxas).arg("--help"))?;
        let mut architectures = ASSEMBLED.to_vec();
        architectures.retain(|number| known.contains(&format!("'sm_{number}'")));
        Ok(Some(Self {
            version: run(Command::new(&ptxas).arg("--version"))?,
            architectures,
            ptxas,
        }))
    }

    /// Spills and any other local memory are errors. What it says of registers goes beside the image, for
    /// `tests/cuda_kernels.rs`.
    fn assemble(&self, ptx: &Path, architecture: u32, image: &Path) -> Result<(), String> {
        let said = run(Command::new(&self.ptxas)
            .args([
                "--verbose",
                "--warn-on-spills",
                "--warn-on-local-memory-usage",
            ])
            .args(["--warning-as-error", "--gpu-name"])
            .arg(format!("sm_{architecture}"))
            .arg("-o")
            .args([image, ptx]))?;
        write(&usage_of(image), said.as_bytes())
    }
}

/// Makes files, or copies what an earlier build made of the same inputs.
fn cached(
    inputs: &impl Hash,
    files: &[&Path],
    make: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let Some(folder) = env::var_os("LOWBIT_KERNEL_CACHE").map(PathBuf::from) else {
        return make();
    };
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    let hash = hasher.finish();
    let entries = || (0..).map(|i| folder.join(format!("{hash:016x}.{i}")));
    if entries()
        .zip(files)
        .all(|(entry, file)| fs::copy(entry, file).is_ok())
    {
        return Ok(());
    }
    make()?;
    for (entry, file) in entries().zip(files) {
        // Whole or not at all: others may build at the same time.
        let part = with_suffix(&entry, &format!(".{}", std::process::id()));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::copy(file, &part))
            .and_then(|_| fs::rename(&part, &entry))
            .map_err(|error| format!("{}: {error}", entry.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    paths.iter().map(|path| read(path)).collect()
}

/// The files of `cuda` with an extension, in the order of their names.
fn sources(extension: &str) -> Result<Vec<PathBuf>, String> {
    let mut sources = fs::read_dir("cuda")
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(|error| format!("cuda: {error}"))?;
    sources.retain(|path| path.extension().is_some_and(|found| found == extension));
    sources.sort();
    Ok(sources)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

enum Compiler {
    Nvrtc(nvrtc::Library),
    Nvcc(PathBuf),
}

impl Compiler {
    /// The inner error says where was looked; the outer one is a wrong `LOWBIT_NVRTC`.
    fn find() -> Result<Result<Self, String>, String> {
        for key in ["LOWBIT_NVRTC", "CUDA_HOME"] {
            println!("cargo::rerun-if-env-changed={key}");
        }
        let variable = |key| env::var_os(key).filter(|value| !value.is_empty());
        if let Some(asked) = variable("LOWBIT_NVRTC") {
            let path = nvrtc::locate(Path::new(&asked))
                .ok_or_else(|| format!("LOWBIT_NVRTC is {asked:?}, which has no libnvrtc"))?;
            return nvrtc::Library::open(&path).map(|library| Ok(Self::Nvrtc(library)));
        }
        let manifest_dir = variable("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?;
        let installed = Path::new(&manifest_dir).join("target/env/nvrtc");
        let mut missing = "no compiler for them was found; `cargo xtask env nvrtc` installs one \
                           (looked for LOWBIT_NVRTC, CUDA_HOME, target/env/nvrtc, nvcc on PATH)"
            .to_owned();
        for dir in [variable("CUDA_HOME").map(PathBuf::from), Some(installed)] {
            if let Some(path) = dir.and_then(|dir| nvrtc::locate(&dir)) {
                match nvrtc::Library::open(&path) {
                    Ok(library) => return Ok(Ok(Self::Nvrtc(library))),
                    Err(error) => missing = error,
                }
            }
        }
        let nvcc = env::split_paths(&variable("PATH").unwrap_or_default())
            .map(|dir| dir.join("nvcc"))
            .find(|path| path.is_file());
        Ok(nvcc.map(Self::Nvcc).ok_or(missing))
    }

    /// As CUDA writes it: 12010 for 12.1. Drivers take PTX up to their own version.
    fn version(&self) -> Result<i32, String> {
        let (major, minor) = match self {
            Self::Nvrtc(library) => library.version()?,
            Self::Nvcc(nvcc) => {
                let text = run(Command::new(nvcc).arg("--version"))?;
                text.split_once("release ")
                    .and_then(|(_, rest)| rest.split_once(',')?.0.split_once('.'))
                    .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                    .ok_or_else(|| format!("{} has no version: {text}", nvcc.display()))?
            }
        };
        Ok(1000 * major + 10 * minor)
    }

    fn compile(&self, source: &Path, ptx: &Path) -> Result<Vec<u8>, String> {
        match self {
            Self::Nvrtc(library) => library
                .compile(source)
                .map_err(|error| format!("{}: {error}", source.display())),
            Self::Nvcc(nvcc) => {
                run(Command::new(nvcc)
                    .arg("-ptx")
                    .arg(format!("-arch={ARCH}"))
                    .args(OPTIONS)
                    .arg("-o")
                    .args([ptx, source]))?;
                read(ptx)
            }
        }
    }
}

/// What a program prints.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?} failed:\n{text}"))
    }
}

/// NVIDIA's run-time compiler, a shared library with a C interface.
#[cfg(unix)]
mod nvrtc {
    #![expect(unsafe_code, reason = "calls a C library that is loaded by name")]

    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::{Path, PathBuf};
    use std::ptr::null_mut;

    // Part of the C library, which std links.
    unsafe extern "C" {
        fn dlopen(path: *const c_char, mode: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
        fn dlerror() -> *const c_char;
    }

    const RTLD_NOW: c_int = 2;

    type Program = *mut c_void;
    type Status = c_int;

    /// The few functions that are needed; never unloaded.
    pub(crate) struct Library {
        version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
        error_string: unsafe extern "C" fn(Status) -> *const c_char,
        create: unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status,
        compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
        log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
        ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
        destroy: unsafe extern "C" fn(*mut Program) -> Status,
    }

    /// The library at `path`, or in the folder `path`.
    pub(crate) fn locate(path: &Path) -> Option<PathBuf> {
        if path.is_file() {
            return Some(path.to_owned());
        }
        let names = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
        let files = ["", "lib64", "lib"]
            .into_iter()
            .flat_map(|dir| names.map(|name| path.join(dir).join(name)));
        files.into_iter().find(|file| file.is_file())
    }

    impl Library {
        pub(crate) fn open(path: &Path) -> Result<Self, String> {
            println!("cargo::rerun-if-changed={}", path.display());
            let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
            // SAFETY: a NUL-terminated path; the library is NVRTC, whose initialisers are sound.
            let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
            if library.is_null() {
                return Err(last_error());
            }
            // SAFETY: each type is that of the function in nvrtc.h, stable since CUDA 7.
            unsafe {
                Ok(Self {
                    version: symbol(library, c"nvrtcVersion")?,
                    error_string: symbol(library, c"nvrtcGetErrorString")?,
                    create: symbol(library, c"nvrtcCreateProgram")?,
                    compile: symbol(library, c"nvrtcCompileProgram")?,
                    log_size: symbol(library, c"nvrtcGetProgramLogSize")?,
                    log: symbol(library, c"nvrtcGetProgramLog")?,
                    ptx_size: symbol(library, c"nvrtcGetPTXSize")?,
                    ptx: symbol(library, c"nvrtcGetPTX")?,
                    destroy: symbol(library, c"nvrtcDestroyProgram")?,
                })
            }
        }

        pub(crate) fn version(&self) -> Result<(i32, i32), String> {
            let (mut major, mut minor) = (0, 0);
            // SAFETY: two live integers.
            self.check(unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
            Ok((major, minor))
        }

        pub(crate) fn compile(&self, source: &Path) -> Result<Vec<u8>, String> {
            let text = std::fs::read(source).map_err(|error| error.to_string())?;
            let text = CString::new(text).map_err(|error| error.to_string())?;
            let name = CString::new(source.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
            let include = format!("-I{}", source.parent().unwrap_or(source).display());
            let options = [&format!("--gpu-architecture={}", super::ARCH), &include]
                .into_iter()
                .map(String::as_str)
                .chain(super::OPTIONS)
                .map(CString::new)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| error.to_string())?;
            let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();

            let mut program = null_mut();
            // SAFETY: strings that outlive the calls; no headers are given; the program is made
            // by `create` and destroyed once, at the end.
            unsafe {
                self.check((self.create)(
                    &raw mut program,
                    text.as_ptr(),
                    name.as_ptr(),
                    0,
                    null_mut(),
                    null_mut(),
                ))?;
                let status = (self.compile)(program, options.len() as c_int, options.as_ptr());
                let log = self.read(program, self.log_size, self.log);
                let result = match (self.check(status), log) {
                    (Err(error), log) => Err(format!("{error}\n{}", text_of(log))),
                    // Warnings are errors here: nobody reads the output of a build that passed.
                    (Ok(()), Ok(log)) if !log.is_empty() => Err(text_of(Ok(log))),
                    (Ok(()), _) => self.read(program, self.ptx_size, self.ptx),
                };
                (self.destroy)(&raw mut program);
                result
            }
        }

        /// A text of a program, without the final NUL.
        ///
        /// # Safety
        /// The program lives; `size` and `get` belong together.
        unsafe fn read(
            &self,
            program: Program,
            size: unsafe extern "C" fn(Program, *mut usize) -> Status,
            get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
        ) -> Result<Vec<u8>, String> {
            let mut bytes = 0;
            // SAFETY: the caller's promise; the buffer has the size that was asked for.
            unsafe {
                self.check(size(program, &raw mut bytes))?;
                let mut text = vec![0_u8; bytes];
                self.check(get(program, text.as_mut_ptr().cast()))?;
                text.truncate(bytes.saturating_sub(1));
                Ok(text)
            }
        }

        fn check(&self, status: Status) -> Result<(), String> {
            if status == 0 {
                return Ok(());
            }
            // SAFETY: any status has a static text.
            let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
            Err(text.to_string_lossy().into_owned())
        }
    }

    fn text_of(log: Result<Vec<u8>, String>) -> String {
        log.map_or_else(|error| error, |log| String::from_utf8_lossy(&log).into())
    }

    /// # Safety
    /// `F` is the type of the function called `name`.
    unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Result<F, String> {
        // SAFETY: the library is loaded.
        let address = unsafe { dlsym(library, name.as_ptr()) };
        if address.is_null() {
            return Err(last_error());
        }
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        // SAFETY: `F` is a function pointer, as wide as the address; the caller's promise.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }

    fn last_error() -> String {
        // SAFETY: called after a failure on this thread, so that there is a text.
        let text = unsafe { CStr::from_ptr(dlerror()) };
        text.to_string_lossy().into_owned()
    }
}

/// Elsewhere nvcc is the only choice.
#[cfg(not(unix))]
mod nvrtc {
    use std::path::{Path, PathBuf};

    pub(crate) enum Library {}

    pub(crate) fn locate(_: &Path) -> Option<PathBuf> {
        None
    }

    impl Library {
        pub(crate) fn open(_: &Path) -> Result<Self, String> {
            Err("NVRTC is not used on this system".into())
        }

        pub(crate) fn version(&self) -> Result<(i32, i32), String> {
            match *self {}
        }

        pub(crate) fn compile(&self, _: &Path) -> Result<Vec<u8>, String> {
            match *self {}
        }
    }
}
