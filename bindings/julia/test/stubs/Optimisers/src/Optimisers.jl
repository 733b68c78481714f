# The protocol between Optimisers.jl and its rules, for models of NamedTuples, Tuples and Vectors.

module Optimisers

abstract type AbstractRule end

function init end

"Returns the new state and what is to be subtracted from `x`, or nothing."
function apply! end

"The state of one array. Its identity is the array's: an array that occurs twice has one."
mutable struct Leaf{R,S}
    rule::R
    state::S
    frozen::Bool
end

const Nest = Union{NamedTuple,Tuple,Vector{Any}}

isnumeric(x) = x isa AbstractArray{<:Number} && !(x isa AbstractArray{<:Integer})

"Whether an array may be written to; others are replaced."
maywrite(x) = x isa DenseArray

children(x::NamedTuple) = values(x)
children(x) = x

function setup(rule::AbstractRule, model, leaves = IdDict())
    isnumeric(model) && return get!(() -> Leaf(rule, init(rule, model), false), leaves, model)
    return model isa Nest ? map(x -> setup(rule, x, leaves), model) : ()
end

function update!(tree, model, gradient)
    sums = IdDict{Leaf,Any}()
    add!(sums, tree, gradient)
    return tree, step!(tree, model, sums, IdDict())
end

"Copies, then updates: the arguments stay as they were."
update(tree, model, gradient) =
    update!(duplicate(tree, IdDict()), duplicate(model, IdDict()), gradient)

add!(sums, tree, ::Nothing) = nothing
add!(sums, leaf::Leaf, ::Nothing) = nothing
add!(sums, leaf::Leaf, dx) =
    sums[leaf] = haskey(sums, leaf) ? Base.broadcasted(+, sums[leaf], dx) : dx
add!(sums, tree, gradient) =
    foreach((t, dx) -> add!(sums, t, dx), children(tree), children(gradient))

step!(tree, model, sums, done) =
    model isa Nest ? map((t, x) -> step!(t, x, sums, done), tree, model) : model
function step!(leaf::Leaf, x, sums, done)
    (leaf.frozen || !haskey(sums, leaf)) && return x
    return get!(done, leaf) do
        leaf.state, dx = apply!(leaf.rule, leaf.state, x, sums[leaf])
        subtract!(x, dx)
    end
end

subtract!(x, ::Nothing) = x
subtract!(x, dx) = maywrite(x) ? x .= x .- dx : eltype(x).(x .- dx)

"Every writable array is copied, others are shared; what was one object stays one."
duplicate(x, copies) = maywrite(x) ? get!(() -> copy(x), copies, x) : x
duplicate(x::Nest, copies) = map(y -> duplicate(y, copies), x)
duplicate(leaf::Leaf, copies) =
    get!(() -> Leaf(leaf.rule, duplicate(leaf.state, copies), leaf.frozen), copies, leaf)

adjust!(tree, eta::Real) = foreach(t -> adjust!(t, eta), children(tree))
adjust!(tree; fields...) = foreach(t -> adjust!(t; fields...), children(tree))
adjust!(leaf::Leaf, eta::Real) = adjust!(leaf; eta = eta)
adjust!(leaf::Leaf; fields...) = (leaf.rule = adjust(leaf.rule; fields...); nothing)

"A rule of the same type, by the constructor that takes all fields; other names are passed over."
function adjust(rule::R; fields...) where {R<:AbstractRule}
    return R((get(fields, name, getfield(rule, name)) for name in fieldnames(R))...)
end

freeze!(tree, frozen = true) = foreach(t -> freeze!(t, frozen), children(tree))
freeze!(leaf::Leaf, frozen = true) = (leaf.frozen = frozen; nothing)
thaw!(tree) = freeze!(tree, false)

"Subtracts the gradient times `eta`, lazily."
struct Descent <: AbstractRule
    eta::Float64
end
init(::Descent, x) = nothing
apply!(rule::Descent, state, x, dx) = state, Base.broadcasted(*, eltype(x)(rule.eta), dx)

struct ClipGrad <: AbstractRule
    delta::Float64
end
init(::ClipGrad, x) = nothing
function apply!(rule::ClipGrad, state, x, dx)
    limit = eltype(x)(rule.delta)
    return state, Base.broadcasted(clamp, dx, -limit, limit)
end

"Each rule is given what the one before it returned; after nothing, none is asked."
struct OptimiserChain{T<:Tuple} <: AbstractRule
    opts::T
end
OptimiserChain(opts...) = OptimiserChain(opts)
init(chain::OptimiserChain, x) = map(rule -> init(rule, x), chain.opts)
function apply!(chain::OptimiserChain, states, x, dx)
    new = Any[]
    for (rule, state) in zip(chain.opts, states)
        if dx !== nothing
            state, dx = apply!(rule, state, x, dx)
        end
        push!(new, state)
    end
    return Tuple(new), dx
end
adjust(chain::OptimiserChain; fields...) =
    OptimiserChain(map(rule -> adjust(rule; fields...), chain.opts))

end
