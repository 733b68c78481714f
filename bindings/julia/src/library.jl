# Finding the library, loading it, and looking up its functions.

import Libdl

"A loaded library. `symbols` has every function of the C ABI and never changes."
struct Library
    path::String
    symbols::Dict{Symbol,Ptr{Cvoid}}
end

const LOCK = ReentrantLock()
const PATH = Ref{Union{Nothing,String}}(nothing)
const LIBRARY = Ref{Union{Nothing,Library}}(nothing)

"""
    set_library!(path)

Use the library at `path` in this session. To be called before the first use; the environment
variable `LOWBIT_LIBRARY` wins. See [`libpath`](@ref) for ways that last.
"""
function set_library!(path::AbstractString)
    lock(LOCK) do
        loaded = LIBRARY[]
        if loaded !== nothing && loaded.path != path
            error("the library was loaded from $(loaded.path) already; restart Julia to change it")
        end
        PATH[] = String(path)
    end
    return nothing
end

"""
    libpath()

Where the library was loaded from (it is loaded if it was not). It is looked for in this order:

1. the environment variable `LOWBIT_LIBRARY`, a path
2. [`set_library!`](@ref)
3. the preference `libpath` of this package, a path, from Julia 1.6 on:
   `Preferences.set_preferences!(Lowbit, "libpath" => path)`
4. `liblowbit`, where the dynamic loader searches

# Example

```jldoctest
julia> isempty(Lowbit.libpath())
false
```
"""
libpath() = library().path

"""
    functional()

Whether the library can be loaded. [`libpath`](@ref) throws the reason if it cannot.
"""
function functional()
    try
        library()
        return true
    catch
        return false
    end
end

"The address of a function. Does not allocate once the library is loaded."
sym(name::Symbol) = library().symbols[name]

function library()
    loaded = LIBRARY[]
    loaded === nothing || return loaded
    return lock(LOCK) do
        if LIBRARY[] === nothing
            LIBRARY[] = open_library(find_library())
        end
        LIBRARY[]::Library
    end
end

function find_library()
    path = get(ENV, "LOWBIT_LIBRARY", "")
    isempty(path) || return path
    PATH[] === nothing || return PATH[]::String
    path = preference("libpath")
    path === nothing || return String(path)
    # The dynamic loader searches for it.
    return Sys.iswindows() ? "lowbit" : "liblowbit"
end

"""
A preference of this package, or nothing: what Preferences.jl's `load_preference` reads, when it is
needed and not when the package is compiled. Julia has them from 1.6 on.
"""
function preference(key)
    isdefined(Base, :get_preferences) || return nothing
    return get(Base.get_preferences(Base.PkgId(@__MODULE__).uuid), key, nothing)
end

function open_library(path)
    # Without the RTLD_DEEPBIND of Julia's default flags: under it a library may bind to another
    # unwinder than the process has.
    handle = try
        Libdl.dlopen(path, Libdl.RTLD_LAZY | Libdl.RTLD_LOCAL)
    catch reason
        error(
            "$(sprint(showerror, reason))\nBuild the library and set the environment variable " *
            "LOWBIT_LIBRARY to its path, or call Lowbit.set_library!(path).",
        )
    end
    abi_version = Libdl.dlsym(handle, :lowbit_abi_version; throw_error = false)
    abi_version === nothing && error("$path is no lowbit library")
    major, minor = Ref{UInt32}(0), Ref{UInt32}(0)
    ccall(abi_version, Int32, (Ptr{UInt32}, Ptr{UInt32}), major, minor)
    version = ccall(Libdl.dlsym(handle, :lowbit_version), Cstring, ())
    check_abi(path, unsafe_string(version), Int(major[]), Int(minor[]))
    functions = filter(names(@__MODULE__; all = true)) do name
        startswith(string(name), "lowbit_") && getfield(@__MODULE__, name) isa Function
    end
    return Library(path, Dict(name => Libdl.dlsym(handle, name) for name in functions))
end

"The version in Project.toml."
const PACKAGE_VERSION = let project = joinpath(dirname(@__DIR__), "Project.toml")
    include_dependency(project)
    VersionNumber(match(r"^version = \"(.*)\"$"m, read(project, String)).captures[1])
end

function check_abi(path, version, major, minor)
    if major != LOWBIT_ABI_MAJOR || minor < LOWBIT_ABI_MINOR
        error(
            "$path is lowbit $version with the ABI $major.$minor, but Lowbit.jl $PACKAGE_VERSION " *
            "needs the ABI $LOWBIT_ABI_MAJOR.$LOWBIT_ABI_MINOR: install the two of one release",
        )
    end
    return nothing
end
