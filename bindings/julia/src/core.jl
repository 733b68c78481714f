# Errors, handles, contexts and specs.

"""
    Error <: Exception

A call that the library refused; nothing was done.

- `code`: the status, one of the constants `LOWBIT_STATUS_...`
- `name`: its name, as `"OVERLAP"`
- `text`: which argument, which value; the library counts tensors from 0

# Example

```jldoctest
julia> try
           Lowbit.Spec("adamw3")
       catch error
           error.name
       end
"INVALID_ARGUMENT"
```
"""
struct Error <: Exception
    code::Int32
    name::String
    text::String
end

Base.showerror(io::IO, error::Error) =
    print(io, "Lowbit.Error: ", error.text, " (", error.name, ", ", error.code, ")")

"Throws if `status` is not OK. To be called on the same thread, at once."
function check(status::Int32)
    status == LOWBIT_STATUS_OK && return nothing
    text = zeros(UInt8, 1025)
    lowbit_last_error(text, length(text), C_NULL)
    name = unsafe_string(lowbit_status_name(status))
    throw(Error(status, name, GC.@preserve text unsafe_string(pointer(text))))
end

"The text that `f(buffer, capacity, needed)` writes."
function read_text(f)
    needed = Ref{Csize_t}(0)
    check(f(C_NULL, 0, needed))
    text = Vector{UInt8}(undef, needed[])
    check(f(text, length(text), needed))
    return String(text[1:end-1])
end

"""
Calls a function of the C ABI while other threads may collect garbage: a step can take long, and a
collection would wait for it.

Between `enter` and `leave` no Julia object may be made and nothing may be thrown, so arguments are
plain pointers and numbers, and the caller keeps their owners alive.
"""
@inline function gc_safe(f::F, arguments::Vararg{Any,N}) where {F,N}
    state = ccall(:jl_gc_safe_enter, Int8, ())
    status = f(arguments...)
    ccall(:jl_gc_safe_leave, Cvoid, (Int8,), state)
    return status
end

"""
An object of the library. It is freed with the last reference to it, or by `close`, which may be
called again; `isopen` says whether it can be used.
"""
abstract type Handle end

Base.isopen(object::Handle) = object.handle != C_NULL

function Base.close(object::Handle)
    handle, object.handle = object.handle, C_NULL
    handle == C_NULL || destroy(object, handle)
    return nothing
end

# Handles never change, so copies of what contains them share them.
Base.deepcopy_internal(object::Handle, ::IdDict) = object

# As arguments of ccall, which keeps the object alive.
Base.cconvert(::Type{Ptr{Cvoid}}, object::Handle) = object
function Base.unsafe_convert(::Type{Ptr{Cvoid}}, object::Handle)
    isopen(object) || throw(ArgumentError("this $(typeof(object)) is closed"))
    return object.handle
end

"""
    Context(; threads = 0, variant = :auto)
    Context(device::Integer)

The processor, and the threads that work on it; or an NVIDIA GPU, counted from 0, whose plans take
arrays in its memory and work in the order of a stream.

- `threads`: how many threads work, the caller's among them; 0: as many as the process may use.
  They are the library's own and independent of Julia's.
- `variant`: `:auto`, `:reference`, `:portable`, `:avx2` or `:avx512`. All give the same bits.

Close with `close`, or leave it to the garbage collector. Plans keep what they need.

# Example

```jldoctest
julia> context = Lowbit.Context(threads = 1);

julia> plan = Lowbit.Plan("adamw4", ["w" => zeros(Float32, 512, 256)]; context = context);

julia> close(context)

julia> isopen(context), isopen(plan)
(false, true)
```
"""
mutable struct Context <: Handle
    handle::Ptr{lowbit_context_t}
    "Whether its memory is the host's."
    on_host::Bool

    function Context(; threads::Integer = 0, variant::Symbol = :auto)
        info = lowbit_cpu_info_t(threads = threads, variant = choose("variant", variant, VARIANTS))
        out = Ref{Ptr{lowbit_context_t}}(C_NULL)
        check(lowbit_context_create_cpu(Ref(info), out))
        return finalizer(close, new(out[], true))
    end

    function Context(device::Integer)
        info = lowbit_cuda_info_t(device = device)
        out = Ref{Ptr{lowbit_context_t}}(C_NULL)
        check(lowbit_context_create_cuda(Ref(info), out))
        return finalizer(close, new(out[], false))
    end
end

destroy(::Context, handle) = lowbit_context_destroy(handle)

const VARIANTS = (
    auto = LOWBIT_CPU_VARIANT_AUTO,
    reference = LOWBIT_CPU_VARIANT_REFERENCE,
    portable = LOWBIT_CPU_VARIANT_PORTABLE,
    avx2 = LOWBIT_CPU_VARIANT_AVX2,
    avx512 = LOWBIT_CPU_VARIANT_AVX512,
)

function choose(what, name, choices)
    haskey(choices, name) && return choices[name]
    throw(ArgumentError("$what is :$name; there are $(join(map(repr, keys(choices)), ", "))"))
end

const DEFAULT_CONTEXT = Ref{Union{Nothing,Context}}(nothing)

"""
    default_context()
    default_context(array)

The context that plans share unless they are given one: the processor's, with as many threads as the
process may use; or that of the device which `array` is on. The package of a device's arrays adds
a method; Lowbit has CUDA.jl's.
"""
function default_context()
    return lock(LOCK) do
        context = DEFAULT_CONTEXT[]
        if context === nothing || !isopen(context)
            context = DEFAULT_CONTEXT[] = Context()
        end
        context
    end
end

function default_context(array::AbstractArray)
    on_host(array) && return default_context()
    throw(ArgumentError(
        "a $(typeof(array)) is not in the host's memory, and Lowbit knows no context for it; " *
        "give one, as Lowbit.Context(0)",
    ))
end

default_context(array::BF16) = default_context(array.bits)

"""
    Spec(text)

Which optimizer, with which quantizer for each of its states: the name of a preset, or JSON.

- `"adamw4"`: the 4-bit AdamW of the paper, m in blocks of 128, v rank-1
- `"adamw4-robust"`: m in blocks of 128, rounded at random, v rank-1 under squares: the closest to 32 bits
- `"adamw4-block"`: m and v in blocks of 128, the fastest
- `"factor4"`: m in blocks of 128, v as means of rows and columns
- `"adamw8"`, `"sgdm4"`, `"lion4"`, `"adafactor"`, `"sm3"`, `"adamw32"`, ...: a wrong name is
  answered with all of them

[`json`](@ref) prints the JSON of a spec, to be kept with a model or to start one's own from.
"""
mutable struct Spec <: Handle
    handle::Ptr{lowbit_spec_t}

    function Spec(text::AbstractString)
        create = startswith(lstrip(text), '{') ? lowbit_spec_create_json : lowbit_spec_create_preset
        out = Ref{Ptr{lowbit_spec_t}}(C_NULL)
        check(create(String(text), out))
        return finalizer(close, new(out[]))
    end
end

Spec(spec::Spec) = spec

destroy(::Spec, handle) = lowbit_spec_destroy(handle)

"""
    json(spec)

A spec as JSON, one line; equal specs have equal texts.

# Example

```jldoctest
julia> text = Lowbit.json(Lowbit.Spec("adamw4"));

julia> Lowbit.json(Lowbit.Spec(text)) == text
true
```
"""
json(spec::Spec) = read_text((text...) -> lowbit_spec_json(spec, text...))

Base.show(io::IO, spec::Spec) =
    print(io, "Lowbit.Spec(", isopen(spec) ? repr(json(spec)) : "closed", ")")
