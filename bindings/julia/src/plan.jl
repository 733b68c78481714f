# Plans, and the states that they lay out.

"""
    Tensor(name, array; grad = array)
    Tensor(name, type, size; grad = type)

A tensor of a [`Plan`](@ref): its name, its size, and the element types of parameter and gradient.
Types are `Float32` and `Lowbit.BF16`; `grad` is a type or an array.
"""
struct Tensor
    name::String
    size::Dims
    param::Int32
    grad::Int32

    function Tensor(name::AbstractString, type::Type, size::Dims; grad = type)
        for (what, given) in (("parameter", type), ("gradient", grad))
            if dtype(given) == 0
                found = given isa Type ? given : eltype(given)
                throw(ArgumentError("the $what of $name is $found; it must be Float32 or BF16"))
            end
        end
        return new(name, size, dtype(type), dtype(grad))
    end
end

Tensor(name::AbstractString, array::AbstractArray; grad = array) =
    Tensor(name, array isa BF16 ? BF16 : eltype(array), size(array); grad = grad)

Tensor(tensor::Tensor) = tensor
Tensor((name, array)::Pair) = Tensor(name, array)

"""
    Plan(spec, tensors; context = Lowbit.default_context())

What every tensor gets, and its state's layout. `spec` is a [`Spec`](@ref) or its text; `tensors`
is a list of `name => array` or of [`Tensor`](@ref)s, with unique names. Shapes and choices are
checked here, so that steps are only work.

A plan has no state: one plan can serve several at once, from several threads.

# Example

```julia
plan = Lowbit.Plan("adamw4", ["weight" => weight, "bias" => bias])
print(Lowbit.report(plan))
```
"""
mutable struct Plan <: Handle
    handle::Ptr{lowbit_plan_t}
    tensors::Vector{Tensor}
    "Name, element type and size of every state buffer."
    buffers::Vector{Tuple{String,DataType,Dims}}
    "Bytes of all state buffers."
    state_bytes::Int
    scratch_bytes::Int

    function Plan(spec::Spec, tensors; context::Context = default_context())
        list = Tensor[Tensor(tensor) for tensor in tensors]
        shapes = [collect(Int64, reverse(tensor.size)) for tensor in list]
        out = Ref{Ptr{lowbit_plan_t}}(C_NULL)
        GC.@preserve list shapes begin
            infos = map(list, shapes) do tensor, shape
                lowbit_tensor_info_t(
                    name = Ptr{UInt8}(Base.unsafe_convert(Cstring, tensor.name)),
                    shape = pointer(shape),
                    ndim = length(shape),
                    param_dtype = tensor.param,
                    grad_dtype = tensor.grad,
                )
            end
            check(lowbit_plan_create(context, spec, infos, length(infos), out))
        end
        plan = finalizer(close, new(out[], list, Tuple{String,DataType,Dims}[], 0, 0))
        info = Ref(lowbit_plan_info_t())
        check(lowbit_plan_info(plan, info))
        plan.state_bytes = info[].state_bytes
        plan.scratch_bytes = info[].scratch_bytes
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
        type = info[].dtype == LOWBIT_DTYPE_U8 ? UInt8 : Float32
        ndim = Int(info[].ndim)
        size = ntuple(axis -> Int(unsafe_load(info[].shape, ndim - axis + 1)), ndim)
        ("$tensor/$state/$part", type, size)
    end
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
"""
report(plan::Plan) = read_text((text...) -> lowbit_plan_report(plan, text...))

"""
    State(plan)

The state before the first step: plain arrays by name, `"<tensor>/<state>/<part>"`, in the plan's
order. Two 4-bit codes share a byte of `codes`, the first in its low half.

A state may be copied, sent or saved like any other data. Fill its arrays in place; do not replace
them.
"""
struct State <: AbstractDict{String,Array}
    names::Vector{String}
    arrays::Vector{Array}
    scratch::Vector{Int32}
end

State(plan::Plan) = State(
    [name for (name, _, _) in plan.buffers],
    [zeros(type, size) for (_, type, size) in plan.buffers],
    zeros(Int32, cld(plan.scratch_bytes, sizeof(Int32))),
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
