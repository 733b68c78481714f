# The optimizer as an object, for parameters in any nest, with its steps counted; and as a rule of
# Optimisers.jl.

"""
    rule(spec = "adamw4"; options...)

A rule of Optimisers.jl, once that package is loaded: for `Optimisers.setup`, `update!`, `update`,
`adjust!`, `freeze!`, and so for Flux and Lux. `spec` is a [`Spec`](@ref)'s text.

# Options

- `eta = 1e-3`, `beta = (0.9, 0.999)`, `epsilon = 1e-8`, `lambda = 0.01`: as in [`setup`](@ref), for
  `Optimisers.adjust!`
- `weights = :plain`: what is kept beside 16-bit parameters: see [`Tensor`](@ref)

# Example

```julia
using Lowbit, Optimisers

state = Optimisers.setup(Lowbit.rule("adamw4"; eta = 3f-4, lambda = 0.1), model)
Optimisers.update!(state, model, gradient)      # the model's arrays change in place
Optimisers.adjust!(state, 1f-4)
```

The state of an array is a NamedTuple of plain arrays, which may be copied, moved to a device and
saved like any other.

A step writes the parameters, in one pass with the state, and leaves Optimisers.jl nothing to
subtract. So in an `OptimiserChain` this rule has to be the **last**: rules after it would be passed
over. Parameters are dense arrays in memory, as `Array` and `CuArray`; others are refused by `setup`.

Where the spec rounds at random, arrays draw by their order in the `setup` of a rule.
"""
function rule(spec = "adamw4"; options...)
    extension = loaded_extension(:LowbitOptimisersExt)
    if extension === nothing
        throw(ArgumentError("rules are for Optimisers.jl, which is not loaded: `using Optimisers`"))
    end
    return extension.Rule(spec; options...)
end

"""
    setup(spec, params; options...) -> Optimizer

An optimizer for `params`: any nest of NamedTuples, Tuples, Vectors and Dicts with arrays of
`Float32`, `Float16` or [`BF16`](@ref) as leaves. Numbers, functions, strings, symbols, `nothing` and
arrays of integers are passed over. The arrays are kept, not copied: [`update!`](@ref) changes them in
place. They are contiguous in memory, all in the host's or, as CUDA.jl's arrays, all in a GPU's.

Tensors are named by their path: `"layers.1.weight"`.

# Options

- `eta = 1e-3`: the learning rate
- `beta = (0.9, 0.999)`, `epsilon = 1e-8`; the first is the momentum of optimizers that have one
- `lambda = 0.01`: weight decay, multiplied by `eta`
- `grad`: the element type of gradients (`Float32`, `Float16` or `Lowbit.BF16`); by default the
  parameter's
- `weights = :plain`: what is kept beside 16-bit parameters: see [`Tensor`](@ref)
- `context`: see [`Context`](@ref); by default the one of the memory that the arrays are in

They are fields of the optimizer and may be changed: `opt.eta = 1f-4`.

# Example

```jldoctest
julia> params = (weight = ones(Float32, 512, 256), bias = zeros(Float32, 512));

julia> opt = Lowbit.setup("adamw4", params; lambda = 0)
Lowbit.Optimizer(Lowbit.Plan(2 tensors, 139.000 KiB of state), step 0, eta 0.001)

julia> for t in 1:10
           grads = (weight = 2 .* params.weight, bias = zeros(Float32, 512))
           Lowbit.update!(opt, grads; eta = 1f-2 / t)
       end

julia> opt.step
10

julia> 0.9 < params.weight[1] < 0.99
true
```
"""
function setup(
    spec,
    params;
    eta::Real = 1.0f-3,
    beta::Tuple{Real,Real} = (0.9f0, 0.999f0),
    epsilon::Real = 1.0f-8,
    lambda::Real = 0.01f0,
    grad::Union{Nothing,Type} = nothing,
    weights::Symbol = :plain,
    context::Union{Nothing,Context} = nothing,
)
    paths, arrays = Vector{Any}[], AbstractArray[]
    leaves!(paths, arrays, Any[], params)
    tensors = map(paths, arrays) do path, array
        if !isdense(array)
            throw(ArgumentError("$(name(path)) is a $(typeof(array)), which is not contiguous"))
        end
        Tensor(
            name(path),
            array;
            grad = grad === nothing ? array : grad,
            weights = dtype(array) == LOWBIT_DTYPE_F32 ? :plain : weights,
        )
    end
    if context === nothing
        context = isempty(arrays) ? default_context() : default_context(arrays[1])
    end
    plan = Plan(Spec(spec), tensors; context = context)
    foreach((array, tensor) -> check_place(plan, array, tensor.name), arrays, tensors)
    state = isempty(arrays) ? State(plan) : State(plan; zeros = zeros_like(arrays[1]))
    return Optimizer(plan, state, paths, arrays, 0, eta, beta, epsilon, lambda)
end

"""
What [`setup`](@ref) returns. Fields: `plan`, `state`, the number of steps done `step`, and the
options `eta`, `beta`, `epsilon`, `lambda`.
"""
mutable struct Optimizer
    plan::Plan
    state::State
    paths::Vector{Vector{Any}}
    params::Vector{AbstractArray}
    step::Int
    eta::Float32
    beta::Tuple{Float32,Float32}
    epsilon::Float32
    lambda::Float32
end

Base.show(io::IO, opt::Optimizer) =
    print(io, "Lowbit.Optimizer(", opt.plan, ", step ", opt.step, ", eta ", opt.eta, ")")

"""
    update!(opt, grads; eta = opt.eta, options...)

One step. `grads` is a nest like the parameters, with an array wherever they have one. Gradients
that are not dense arrays of the right type (views, transposes, `Float64`) are converted first.
`options` are those of [`step!`](@ref): `grad_scale`, `clip_factor`, `skip`, `nonfinite`,
`skipped`, `stream`. A step that throws was not done and is not counted.
"""
function update!(opt::Optimizer, grads; eta::Real = opt.eta, options...)
    list = map(opt.paths, opt.plan.tensors) do path, tensor
        gradient(foldl(child, path; init = grads), tensor)
    end
    step!(
        opt.plan,
        opt.params,
        list,
        opt.state;
        step = opt.step + 1,
        lr = eta,
        beta1 = opt.beta[1],
        beta2 = opt.beta[2],
        eps = opt.epsilon,
        weight_decay = opt.lambda,
        options...,
    )
    opt.step += 1
    return opt
end

"""
    save(opt, path)
    load!(opt, path)

Write, or read, the state and the step count of an optimizer. Parameters and options are the
trainer's to save.

# Example

```jldoctest
julia> params = (w = ones(Float32, 8),);

julia> opt = Lowbit.update!(Lowbit.setup("adamw4", params), (w = ones(Float32, 8),));

julia> path = joinpath(mktempdir(), "state.safetensors");

julia> Lowbit.save(opt, path)

julia> Lowbit.load!(Lowbit.setup("adamw4", params), path).step
1
```
"""
save(opt::Optimizer, path::AbstractString) = save(opt.plan, path, opt.state; step = opt.step)

function load!(opt::Optimizer, path::AbstractString)
    opt.step = load!(opt.plan, path, opt.state)
    return opt
end

report(opt::Optimizer) = report(opt.plan)

# --- nests ---------------------------------------------------------------------------------------

"Finds the arrays in a nest and the paths to them."
function leaves!(paths, arrays, path, nest)
    if nest isa AbstractArray{<:AbstractFloat}
        push!(paths, path)
        push!(arrays, nest)
    elseif nest isa Union{Nothing,Missing,Number,Function,AbstractString,Symbol} ||
           nest isa AbstractArray{<:Number}
        # Nothing to train.
    elseif nest isa Union{NamedTuple,Tuple,AbstractVector,AbstractDict}
        # The order of a Dict is that of its hashes, which may change.
        order = nest isa AbstractDict ? sort!(collect(keys(nest)); by = string) : keys(nest)
        for key in order
            leaves!(paths, arrays, [path; key], nest[key])
        end
    else
        throw(ArgumentError(
            "$(name(path)) is a $(typeof(nest)); a nest is made of NamedTuples, Tuples, Vectors " *
            "and Dicts, with arrays as leaves",
        ))
    end
    return nothing
end

name(path) = isempty(path) ? "params" : join(path, ".")

child(nest, key) = key in keys(nest) ? nest[key] : nothing
child(::Nothing, key) = nothing

"A gradient as the library takes it."
function gradient(grad, tensor)
    array = Base.Broadcast.materialize(grad)
    if !(array isa AbstractArray)
        throw(ArgumentError(
            "the gradient of $(tensor.name) is $(repr(array)); for a parameter that was not " *
            "used, pass zeros, or leave it out of the optimizer",
        ))
    end
    if size(array) != tensor.size
        throw(DimensionMismatch(
            "the gradient of $(tensor.name) has the size $(size(array)), the parameter has " *
            "$(tensor.size)",
        ))
    end
    dtype(array) == tensor.grad && isdense(array) && return array
    tensor.grad == LOWBIT_DTYPE_BF16 && return BF16(array)
    return copyto!(similar(storage(array), TYPES[tensor.grad], tensor.size), array)
end
