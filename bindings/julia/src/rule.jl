# The optimizer as an object: parameters in any nest, steps counted.

"""
    setup(spec, params; options...) -> Optimizer

An optimizer for `params`: any nest of NamedTuples, Tuples, Vectors and Dicts with arrays of
`Float32`, `Float16` or [`BF16`](@ref) as leaves. Numbers, functions, strings, symbols, `nothing` and
arrays of integers are passed over. The arrays are kept, not copied: [`update!`](@ref) changes them in
place.

Tensors are named by their path: `"layers.1.weight"`.

# Options

- `eta = 1e-3`: the learning rate
- `beta = (0.9, 0.999)`, `epsilon = 1e-8`; the first is the momentum of optimizers that have one
- `lambda = 0.01`: weight decay, multiplied by `eta`
- `grad`: the element type of gradients (`Float32`, `Float16` or `Lowbit.BF16`); by default the
  parameter's
- `weights = :plain`: what is kept beside 16-bit parameters: see [`Tensor`](@ref)
- `context`: see [`Context`](@ref)

They are fields of the optimizer and may be changed: `opt.eta = 1f-4`.

# Example

```julia
params = (weight = randn(Float32, 512, 256), bias = zeros(Float32, 512))
opt = Lowbit.setup("adamw4", params; lambda = 0.1)
for (x, y) in data
    grads = gradient(params, x, y)          # a nest like params
    Lowbit.update!(opt, grads; eta = 3f-4)
end
Lowbit.save(opt, "state.safetensors")
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
    context::Context = default_context(),
)
    paths, arrays = Vector{Any}[], AbstractArray[]
    leaves!(paths, arrays, Any[], params)
    tensors = map(paths, arrays) do path, array
        Tensor(
            name(path),
            array;
            grad = grad === nothing ? array : grad,
            weights = dtype(array) == LOWBIT_DTYPE_F32 ? :plain : weights,
        )
    end
    plan = Plan(Spec(spec), tensors; context = context)
    return Optimizer(plan, State(plan), paths, arrays, 0, eta, beta, epsilon, lambda)
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
`skipped`. A step that throws was not done and is not counted.
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
    return copyto!(Array{TYPES[tensor.grad]}(undef, tensor.size), array)
end
