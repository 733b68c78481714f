# Plans, and the states that they lay out.

"""
    Tensor(name, array; grad = array, options...)
    Tensor(name, type, size; grad = type, options...)

A tensor of a [`Plan`](@ref): its name, its size, and the element types of parameter and gradient.
Types are `Float32`, `Float16` and `Lowbit.BF16`; `grad` is a type or an array.

# Options

- `weights = :plain`: what the state keeps beside a 16-bit parameter, so that small updates are not
  lost: `:master` (a `Float32`), `:remainder16` or `:correction8` (for BF16), or, keeping nothing,
  `:stochastic` rounding
- `group = 1`: which of the step's `groups` of hyper-parameters are this tensor's
- `whole`, `first`: for a shard, the size of the whole tensor and the index there (from 1 on) of the
  shard's first element, as `(512, 300)` and `(1, 101)`. Arrays are cut along the last dimension, so
  that each shard is contiguous; a cut within columns has to be at a multiple of the quantizers' block

# Example

```jldoctest
julia> shard = zeros(Float32, 512, 100);

julia> tensor = Lowbit.Tensor("w", shard; whole = (512, 300), first = (1, 101));

julia> only(Lowbit.Plan("adamw4", [tensor]).stages).reduce
:max
```
"""
struct Tensor
    name::String
    size::Dims
    param::Int32
    grad::Int32
    weights::Int32
    group::Int
    whole::Dims
    first::Dims

    function Tensor(
        name::AbstractString,
        type::Type,
        size::Dims;
        grad = type,
        weights::Symbol = :plain,
        group::Integer = 1,
        whole::Dims = size,
        first::Dims = map(one, size),
    )
        if length(whole) != length(size) || length(first) != length(size)
            throw(DimensionMismatch(
                "size, whole and first of $name are $size, $whole and $first",
            ))
        end
        for (what, given) in (("parameter", type), ("gradient", grad))
            if dtype(given) == 0
                found = given isa Type ? given : eltype(given)
                throw(ArgumentError(
                    "the $what of $name is $found; it must be Float32, Float16 or BF16",
                ))
            end
        end
        form = choose("weights", weights, WEIGHTS)
        return new(name, size, dtype(type), dtype(grad), form, group, whole, first)
    end
end

Tensor(name::AbstractString, array::AbstractArray; grad = array, options...) =
    Tensor(name, array isa BF16 ? BF16 : eltype(array), size(array); grad = grad, options...)

const WEIGHTS = (
    plain = LOWBIT_WEIGHTS_PLAIN,
    stochastic = LOWBIT_WEIGHTS_STOCHASTIC,
    master = LOWBIT_WEIGHTS_MASTER,
    remainder16 = LOWBIT_WEIGHTS_REMAINDER16,
    correction8 = LOWBIT_WEIGHTS_CORRECTION8,
)

Tensor(tensor::Tensor) = tensor
Tensor((name, array)::Pair) = Tensor(name, array)

"""
    Plan(spec, tensors; context = Lowbit.default_context())

What every tensor gets, and its state's layout. `spec` is a [`Spec`](@ref) or its text; `tensors`
is a list of `name => array` or of [`Tensor`](@ref)s, with unique names. Shapes and choices are
checked here, so that steps are only work.

A plan has no state: one plan can serve several at once, from several threads.

# Example

```jldoctest
julia> arrays = ["weight" => zeros(Float32, 512, 256), "bias" => zeros(Float32, 512)];

julia> plan = Lowbit.Plan("adamw4", arrays)
Lowbit.Plan(2 tensors, 139.000 KiB of state)

julia> round(plan.state_bytes / (512 * 256 + 512); digits = 2)
1.08
```
"""
mutable struct Plan <: Handle
    handle::Ptr{lowbit_plan_t}
    tensors::Vector{Tensor}
    "Name, element type and size of every state buffer."
    buffers::Vector{Tuple{String,DataType,Dims}}
    "What shards combine in a step, one after the other: `type`, `reduce` (`:max` or `:sum`)."
    stages::Vector{NamedTuple{(:type, :reduce, :offset, :count),Tuple{DataType,Symbol,Int,Int}}}
    "Bytes of all state buffers."
    state_bytes::Int
    scratch_bytes::Int
    "How many groups of hyper-parameters a step takes."
    group_count::Int
    "Whether its memory is the host's."
    on_host::Bool

    function Plan(spec::Spec, tensors; context::Context = default_context())
        list = Tensor[Tensor(tensor) for tensor in tensors]
        reversed(dims) = collect(Int64, reverse(dims))
        shapes = [reversed(tensor.size) for tensor in list]
        wholes = [reversed(tensor.whole) for tensor in list]
        offsets = [reversed(tensor.first .- 1) for tensor in list]
        out = Ref{Ptr{lowbit_plan_t}}(C_NULL)
        GC.@preserve list shapes wholes offsets begin
            infos = map(list, shapes, wholes, offsets) do tensor, shape, whole, offset
                lowbit_tensor_info_t(
                    name = Ptr{UInt8}(Base.unsafe_convert(Cstring, tensor.name)),
                    shape = pointer(shape),
                    ndim = length(shape),
                    param_dtype = tensor.param,
                    grad_dtype = tensor.grad,
                    weights = tensor.weights,
                    group = tensor.group - 1,
                    global_shape = pointer(whole),
                    offset = pointer(offset),
                )
            end
            check(lowbit_plan_create(context, spec, infos, length(infos), out))
        end
        plan = finalizer(close, new(out[], list, [], [], 0, 0, 0, context.on_host))
        info = Ref(lowbit_plan_info_t())
        check(lowbit_plan_info(plan, info))
        plan.state_bytes = info[].state_bytes
        plan.scratch_bytes = info[].scratch_bytes
        plan.group_count = info[].group_count
        plan.stages = [plan_stage(plan, i - 1) for i in 1:info[].stage_count]
        plan.buffers = [plan_buffer(plan, i - 1) for i in 1:info[].buffer_count]
        return plan
    end
end

Plan(spec::AbstractString, tensors; options...) = Plan(Spec(spec), tensors; options...)

destroy(::Plan, handle) = lowbit_plan_destroy(handle)

function plan_buffer(plan, index)
    info = Ref(lowbit_buffer_info_t())
    check(lowbit_plan_buffer(plan, index, info))
    return GC.@preserve plan begin
        tensor = plan.tensors[info[].tensor+1].name
        state, part = unsafe_string(info[].state), unsafe_string(info[].part)
        ndim = Int(info[].ndim)
        size = ntuple(axis -> Int(unsafe_load(info[].shape, ndim - axis + 1)), ndim)
        ("$tensor/$state/$part", TYPES[info[].dtype], size)
    end
end

function plan_stage(plan, index)
    info = Ref(lowbit_stage_info_t())
    check(lowbit_plan_stage(plan, index, info))
    reduce = info[].reduce == LOWBIT_REDUCE_MAX ? :max : :sum
    type = TYPES[info[].dtype]
    return (type = type, reduce = reduce, offset = info[].offset, count = info[].count)
end

Base.show(io::IO, plan::Plan) = print(
    io,
    "Lowbit.Plan(",
    isopen(plan) ? "" : "closed, ",
    length(plan.tensors),
    " tensors, ",
    Base.format_bytes(plan.state_bytes),
    " of state)",
)

"""
    report(plan)

A table for people: per tensor its shape (as the library has it: Julia's size reversed), bytes,
quantizers and why, and the totals.

# Example

```jldoctest
julia> plan = Lowbit.Plan("adamw4", ["w" => zeros(Float32, 512, 256)]);

julia> occursin("[256, 512]", Lowbit.report(plan))
true
```
"""
report(plan::Plan) = read_text((text...) -> lowbit_plan_report(plan, text...))

"""
    State(plan; zeros = Base.zeros)

The state before the first step: plain arrays by name, `"<tensor>/<state>/<part>"`, in the plan's
order. `zeros(type, size)` makes them: `CUDA.zeros` for a plan of a GPU. Two 4-bit codes share a
byte of `codes`, the first in its low half. What is kept beside a parameter is there too:
`"weight/weights/master"`.

A state may be copied, sent or saved like any other data. Fill its arrays in place; do not replace
them.

# Example

```jldoctest
julia> state = Lowbit.State(Lowbit.Plan("adamw4", ["w" => zeros(Float32, 512, 256)]));

julia> for (name, array) in state
           println(name, " ", eltype(array), " ", size(array))
       end
w/m/codes UInt8 (256, 256)
w/m/scales Float32 (4, 256)
w/v/codes UInt8 (256, 256)
w/v/axis0 Float32 (256,)
w/v/axis1 Float32 (512,)
```
"""
struct State <: AbstractDict{String,AbstractArray}
    names::Vector{String}
    arrays::Vector{AbstractArray}
    scratch::AbstractVector{Int64}
end

default_stream(state::State) = default_stream(state.scratch)

State(plan::Plan; zeros = Base.zeros) = State(
    [name for (name, _, _) in plan.buffers],
    [zeros(type, size) for (_, type, size) in plan.buffers],
    zeros(Int64, (plan.scratch_bytes ÷ sizeof(Int64),)),
)

Base.length(state::State) = length(state.names)

function Base.iterate(state::State, i = 1)
    i > length(state) && return nothing
    return state.names[i] => state.arrays[i], i + 1
end

function Base.get(state::State, name, default)
    i = findfirst(isequal(name), state.names)
    return i === nothing ? default : state.arrays[i]
end

function Base.show(io::IO, ::MIME"text/plain", state::State)
    print(io, "Lowbit.State with ", length(state), " arrays:")
    for (name, array) in state
        print(io, "\n  ", name, "  ", summary(array))
    end
end

Base.copy(state::State) = deepcopy(state)

"""
    statistics(plan, state, stage)

What shards combine after [`collect!`](@ref) of this stage, a view into `state`: the elements' type
and how to combine them are in `plan.stages[stage]`.
"""
function statistics(plan::Plan, state::State, stage::Integer)
    type, _, offset, count = plan.stages[stage]
    return view(reinterpret(type, state.scratch), offset ÷ sizeof(type) .+ (1:count))
end
