# The calls that work on tensors and states.

"A list of arrays as the library takes it. `arrays` keeps the memory alive that `data` points to."
struct Buffers
    arrays::Vector{AbstractArray}
    data::Vector{lowbit_buffer_t}
end

function Buffers(plan::Plan, state::State)
    for (name, array) in zip(state.names, state.arrays)
        check_place(plan, array, "the state's $name")
    end
    check_place(plan, state.scratch, "the state's scratch")
    return Buffers(state.arrays, map(buffer, state.arrays))
end

"Checks `arrays` against the tensors of a plan; `type(tensor)` is the element type to expect."
function Buffers(plan::Plan, what, arrays, type)
    list = collect(AbstractArray, arrays)
    if length(list) != length(plan.tensors)
        throw(DimensionMismatch(
            "$what has $(length(list)) arrays, the plan has $(length(plan.tensors)) tensors",
        ))
    end
    for (i, (array, tensor)) in enumerate(zip(list, plan.tensors))
        check_array(array, tensor.size, type(tensor), "$what[$i] ($(tensor.name))")
        check_place(plan, array, "$what[$i] ($(tensor.name))")
    end
    return Buffers(list, map(buffer, list))
end

function check_array(array, size, type, name)
    if Base.size(array) != size
        throw(DimensionMismatch("$name has the size $(Base.size(array)), the plan has $size"))
    end
    if dtype(array) != type
        throw(ArgumentError("$name is a $(typeof(array)), the plan has $(nameof(TYPES[type]))"))
    end
    isdense(array) || throw(ArgumentError("$name is a $(typeof(array)), which is not contiguous"))
    return nothing
end

function check_place(plan, array, name)
    if on_host(array) != plan.on_host
        has, needs = plan.on_host ? ("a device's", "the host's") : ("the host's", "a device's")
        throw(ArgumentError(
            "$name is a $(typeof(array)) in $has memory; the plan works in $needs",
        ))
    end
    return nothing
end

const NONFINITE = (
    default = LOWBIT_NONFINITE_DEFAULT,
    skip_block = LOWBIT_NONFINITE_SKIP_BLOCK,
    skip_tensor = LOWBIT_NONFINITE_SKIP_TENSOR,
    skip_step = LOWBIT_NONFINITE_SKIP_STEP,
    propagate = LOWBIT_NONFINITE_PROPAGATE,
)

"""
    step!(plan, params, grads, state; step, options...)

One step for all tensors of the plan in one foreign call: `params` and `state` are updated in
place. `params` and `grads` are lists of arrays in the plan's order. Other Julia threads go on
meanwhile and may collect garbage.

# Options

- `step`: the number of this step, from 1
- `lr = 1e-3`, `beta1 = 0.9`, `beta2 = 0.999`, `eps = 1e-8`, `weight_decay = 0.01`: as in AdamW;
  the decay is multiplied by `lr`. `beta1` is the momentum of optimizers that have one
- `grad_scale = 1`, `clip_factor = 1`: gradients are multiplied by both (1 / loss scale, and
  clipping by global norm)
- `skip = false`: change nothing
- `nonfinite = :default`: what a NaN or an infinity in a gradient does. `:skip_block`,
  `:skip_tensor` and `:skip_step` leave the block, the tensor or everything as it was;
  `:propagate` lets it through; `:default` is `:skip_tensor` for tensors whose update needs all of
  the tensor (rank-1, factored) and `:skip_block` for the others
- `groups = nothing`: for each group of the plan a `NamedTuple` of `lr` … `skip`, over those given
  for all
- `updates = nothing`: arrays that receive the update instead of `params` being changed
- `skipped = nothing`: an array of two `Int64` counters, which rise by the number of blocks and
  of tensors that were skipped
- `hyper = nothing`, `number = nothing`: arrays that have what `lr` … `skip` (8 `Float32` for each
  group) and `step` (an `Int32`) say otherwise. A GPU reads them when the work runs
- `stream`: of plans of a GPU, a `CUstream`; the work is in its order, and may still be going on
  when the call returns. All arrays are then the GPU's and must live until it is done. By default
  the task's stream of the arrays' package: see [`default_stream`](@ref)

# Example

```jldoctest
julia> w, dw = ones(Float32, 300, 20), ones(Float32, 300, 20);

julia> plan = Lowbit.Plan("adamw4", ["w" => w]);

julia> state = Lowbit.State(plan);

julia> Lowbit.step!(plan, [w], [dw], state; step = 1, lr = 0.5, weight_decay = 0);

julia> all(x -> isapprox(x, 0.5; atol = 1e-6), w)
true
```
"""
function step!(plan::Plan, params, grads, state::State; stream = default_stream(state), options...)
    queue = Ptr{Cvoid}(stream)
    call_step(plan, params, grads, state; options...) do handle, args
        lowbit_step(handle, args, queue)
    end
    return params
end

"""
    collect!(plan, stage, params, grads, state; step, options...)
    apply!(plan, params, grads, state; step, options...)

A step in parts, for trainers with shards: `collect!` for each of `plan.stages` in turn, after each
the shards combine [`statistics`](@ref), then `apply!`. Options are those of [`step!`](@ref), which
does all of this if it is given the function that combines.
"""
function collect!(
    plan::Plan,
    stage::Integer,
    params,
    grads,
    state::State;
    stream = default_stream(state),
    options...,
)
    index, queue = Int64(stage - 1), Ptr{Cvoid}(stream)
    call_step(plan, params, grads, state; options...) do handle, args
        lowbit_step_stats(handle, args, index, queue)
    end
    return state
end

@doc (@doc collect!) function apply!(
    plan::Plan,
    params,
    grads,
    state::State;
    stream = default_stream(state),
    options...,
)
    queue = Ptr{Cvoid}(stream)
    call_step(plan, params, grads, state; options...) do handle, args
        lowbit_step_apply(handle, args, queue)
    end
    return params
end

"""
    step!(allreduce!, plan, params, grads, state; step, options...)

One step of shards. `allreduce!(values, op)` has to replace `values`, a vector in the memory of
`state`, with the combination of those of all processes by `op`, which is `max` or `+`; `+` is of
integers, so its order does not matter, and every mesh gives the bits of one process.

```julia
Lowbit.step!(plan, [shard], [grad], state; step = t) do values, op
    MPI.Allreduce!(values, op, comm)             # or NCCL.Allreduce!(values, op, comm)
end
```

It is called once for each of `plan.stages`: once for most optimizers, twice with factored states, four
times for Adafactor.
"""
function step!(allreduce!, plan::Plan, params, grads, state::State; options...)
    for (stage, info) in enumerate(plan.stages)
        collect!(plan, stage, params, grads, state; options...)
        allreduce!(statistics(plan, state, stage), info.reduce == :max ? max : +)
    end
    return apply!(plan, params, grads, state; options...)
end

"`f(handle, args)` is what runs, by the rules of [`gc_safe`](@ref)."
function call_step(
    f::F,
    plan::Plan,
    params,
    grads,
    state::State;
    step::Integer,
    lr::Real = 1.0f-3,
    beta1::Real = 0.9f0,
    beta2::Real = 0.999f0,
    eps::Real = 1.0f-8,
    weight_decay::Real = 0.01f0,
    grad_scale::Real = 1,
    clip_factor::Real = 1,
    skip::Bool = false,
    nonfinite::Symbol = :default,
    groups = nothing,
    updates = nothing,
    skipped::Union{Nothing,AbstractVector{Int64}} = nothing,
    hyper::Union{Nothing,AbstractVector{Float32}} = nothing,
    number::Union{Nothing,AbstractVector{Int32}} = nothing,
) where {F}
    check_extra(plan, "skipped", skipped, 2)
    check_extra(plan, "hyper", hyper, 8 * plan.group_count)
    check_extra(plan, "number", number, 1)
    if (hyper === nothing) != (number === nothing)
        throw(ArgumentError("hyper and number come together"))
    end
    nonfinite_code = choose("nonfinite", nonfinite, NONFINITE)
    p = Buffers(plan, "params", params, tensor -> tensor.param)
    g = Buffers(plan, "grads", grads, tensor -> tensor.grad)
    u = updates === nothing ? nothing :
        Buffers(plan, "updates", updates, tensor -> tensor.param)
    s = Buffers(plan, state)
    common = (
        lr = lr,
        beta1 = beta1,
        beta2 = beta2,
        eps = eps,
        weight_decay = weight_decay,
        grad_scale = grad_scale,
        clip_factor = clip_factor,
        skip = skip,
    )
    if groups !== nothing
        hyper === nothing || throw(ArgumentError("groups and hyper are two ways to say the same"))
        if !plan.on_host
            throw(ArgumentError("a plan of a GPU takes groups from its memory: give hyper"))
        end
        hyper, number = group_hyper(plan, common, groups), [Int32(step)]
    end
    scratch = state.scratch
    status = GC.@preserve plan p g u s scratch skipped hyper number begin
        args = Ref(lowbit_step_args_t(;
            tensor_count = length(p.data),
            params = pointer(p.data),
            grads = pointer(g.data),
            updates = u === nothing ? C_NULL : pointer(u.data),
            buffer_count = length(s.data),
            state = pointer(s.data),
            scratch = buffer(scratch),
            step = step,
            nonfinite = nonfinite_code,
            hyper = hyper === nothing ? C_NULL : address(hyper),
            step_number = number === nothing ? C_NULL : address(number),
            skipped = skipped === nothing ? C_NULL : address(skipped),
            common...,
        ))
        handle = Base.unsafe_convert(Ptr{lowbit_plan_t}, plan)
        GC.@preserve args gc_safe(f, handle, Base.unsafe_convert(Ptr{lowbit_step_args_t}, args))
    end
    return check(status)
end

function check_extra(plan, name, array, count)
    array === nothing && return nothing
    if length(array) != count
        throw(DimensionMismatch("$name has $(length(array)) elements, it must have $count"))
    end
    isdense(array) || throw(ArgumentError("$name is a $(typeof(array)), which is not contiguous"))
    return check_place(plan, array, name)
end

"The block of eight numbers of each group. The library sees an address and not how many there are."
function group_hyper(plan, common, groups)
    if length(groups) != plan.group_count
        throw(DimensionMismatch(
            "groups has $(length(groups)) elements, the plan has $(plan.group_count) groups",
        ))
    end
    blocks = map(collect(groups)) do group
        unknown = setdiff(keys(group), keys(common))
        isempty(unknown) || throw(ArgumentError("a group has $(join(unknown, ", "))"))
        collect(Float32, values(merge(common, group)))
    end
    return reduce(vcat, blocks)
end

"""
    compress!(plan, name, values, state; stream)

Quantize `values`, a list of arrays of `Float32` in the plan's order, into the state `name` (`"m"`,
`"v"`, `"vmax"`, `"x"`) of every tensor: to import a full-precision state, or as the primitive of an
optimizer of one's own.
"""
function compress!(
    plan::Plan,
    name::AbstractString,
    values,
    state::State;
    stream = default_stream(state),
)
    v = Buffers(plan, "values", values, tensor -> LOWBIT_DTYPE_F32)
    s, text = Buffers(plan, state), String(name)
    status = GC.@preserve plan v s text gc_safe(
        lowbit_compress,
        Base.unsafe_convert(Ptr{lowbit_plan_t}, plan),
        Base.unsafe_convert(Cstring, text),
        pointer(v.data),
        length(v.data),
        pointer(s.data),
        length(s.data),
        Ptr{Cvoid}(stream),
    )
    check(status)
    return state
end

"""
    decompress!(plan, name, state, values; stream)

Restore the state `name` of every tensor into `values`, a list of arrays of `Float32`.
"""
function decompress!(
    plan::Plan,
    name::AbstractString,
    state::State,
    values;
    stream = default_stream(state),
)
    v = Buffers(plan, "values", values, tensor -> LOWBIT_DTYPE_F32)
    s, text = Buffers(plan, state), String(name)
    status = GC.@preserve plan v s text gc_safe(
        lowbit_decompress,
        Base.unsafe_convert(Ptr{lowbit_plan_t}, plan),
        Base.unsafe_convert(Cstring, text),
        pointer(s.data),
        length(s.data),
        pointer(v.data),
        length(v.data),
        Ptr{Cvoid}(stream),
    )
    check(status)
    return values
end

"""
    decompress(plan, name, state)

The state `name` of every tensor as a list of new `Array{Float32}`.

# Example

```jldoctest
julia> plan = Lowbit.Plan("adamw4", ["w" => zeros(Float32, 128, 40)]);

julia> state = Lowbit.State(plan);

julia> m = [Float32(i) for i in 1:128, j in 1:40];

julia> Lowbit.compress!(plan, "m", [m], state);

julia> restored, = Lowbit.decompress(plan, "m", state);

julia> maximum(abs, restored - m) < 0.15 * maximum(m)
true
```
"""
decompress(plan::Plan, name::AbstractString, state::State) =
    decompress!(plan, name, state, [Array{Float32}(undef, tensor.size) for tensor in plan.tensors])

"""
    save(plan, path, state; step, keep = 0, stream)

Write a checkpoint, whole or not at all; `step` is the number of steps done. The file is a
safetensors file and the same from every language; parameters are not in it.

With `keep` above 0 the file's name has `{step}` in it, which is replaced, and of the files with such
names the newest `keep` stay.
"""
function save(
    plan::Plan,
    path::AbstractString,
    state::State;
    step::Integer,
    keep::Integer = 0,
    stream = default_stream(state),
)
    s, text = Buffers(plan, state), String(path)
    GC.@preserve s text begin
        args = Ref(lowbit_save_args_t(
            buffer_count = length(s.data),
            state = pointer(s.data),
            step = Int64(step),
            path = pointer(text),
            keep = Int32(keep),
        ))
        status = GC.@preserve plan args gc_safe(
            lowbit_checkpoint_write,
            Base.unsafe_convert(Ptr{lowbit_plan_t}, plan),
            Base.unsafe_convert(Ptr{lowbit_save_args_t}, args),
            Ptr{Cvoid}(stream),
        )
    end
    check(status)
    return nothing
end

"""
    load!(plan, path, state; subset = false, stream) -> step

Read a checkpoint file, or an index of several, that was written under the same spec for the same
tensors or any shards of them, from whatever language, into `state`, and return the number of steps
done. With `subset` the checkpoint may have tensors that the plan lacks. What is refused leaves the
state as it was.
"""
function load!(
    plan::Plan,
    path::AbstractString,
    state::State;
    subset::Bool = false,
    stream = default_stream(state),
)
    s, text, info = Buffers(plan, state), String(path), Ref(lowbit_checkpoint_info_t())
    GC.@preserve s text begin
        args = Ref(lowbit_load_args_t(
            flags = UInt64(subset ? LOWBIT_LOAD_SUBSET : 0),
            buffer_count = length(s.data),
            state = pointer(s.data),
            path = pointer(text),
        ))
        status = GC.@preserve plan args info gc_safe(
            lowbit_checkpoint_read,
            Base.unsafe_convert(Ptr{lowbit_plan_t}, plan),
            Base.unsafe_convert(Ptr{lowbit_load_args_t}, args),
            Ptr{Cvoid}(stream),
            Base.unsafe_convert(Ptr{lowbit_checkpoint_info_t}, info),
        )
    end
    check(status)
    return info[].step
end

"""
    reshard(plan, source, path)

Write the checkpoint file of this plan's tensors, whole or any shards of them, from the checkpoint
`source` of any mesh.
"""
function reshard(plan::Plan, source::AbstractString, path::AbstractString)
    from, to = String(source), String(path)
    status = GC.@preserve plan from to gc_safe(
        lowbit_checkpoint_reshard,
        Base.unsafe_convert(Ptr{lowbit_plan_t}, plan),
        Base.unsafe_convert(Cstring, from),
        Base.unsafe_convert(Cstring, to),
        C_NULL,
        C_NULL,
    )
    return check(status)
end

"""
    merge_checkpoint(source, path)

Write all tensors of a checkpoint, whole, into one file.
"""
function merge_checkpoint(source::AbstractString, path::AbstractString)
    from, to = String(source), String(path)
    status = GC.@preserve from to gc_safe(
        lowbit_checkpoint_merge,
        Base.unsafe_convert(Cstring, from),
        Base.unsafe_convert(Cstring, to),
        C_NULL,
        C_NULL,
    )
    return check(status)
end

"""
    write_index(path, files)

Write the index of files that lie in its folder, each with the shards of one process, once they are
one complete checkpoint. It is the index that is then loaded.
"""
function write_index(path::AbstractString, files)
    to, names = String(path), map(String, collect(files))
    status = GC.@preserve to names begin
        pointers = map(pointer, names)
        GC.@preserve pointers gc_safe(
            lowbit_checkpoint_index,
            pointer(pointers),
            length(pointers),
            Base.unsafe_convert(Cstring, to),
        )
    end
    return check(status)
end

"""
    checkpoint_json(path)

Step, spec, and tensors with the places of their shards, as a JSON text. Shapes are those of the file:
Julia's sizes reversed.
"""
function checkpoint_json(path::AbstractString)
    from = String(path)
    return GC.@preserve from read_text() do buffer, capacity, needed
        lowbit_checkpoint_json(Base.unsafe_convert(Cstring, from), buffer, capacity, needed)
    end
end
