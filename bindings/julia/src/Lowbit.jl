"""
    Lowbit

Optimizers with their state in 4 bits, stepped in place by the library `lowbit`.

Two ways in:

- [`setup`](@ref) and [`update!`](@ref): an optimizer for any nest of arrays.
- [`Spec`](@ref), [`Plan`](@ref), [`State`](@ref) and [`step!`](@ref): the pieces it is made of,
  for trainers that keep the state and count the steps themselves.

With Optimisers.jl loaded, [`rule`](@ref) is a third; with CUDA.jl loaded, all take its arrays.

Nothing is exported: write `Lowbit.setup`, `Lowbit.update!`.

Arrays are column-major here and row-major in the library. No byte is moved for that: a Julia array
of size `(m, n)` is the library's tensor of shape `(n, m)`. What the library calls a row is a Julia
column, and blocks of a quantizer run along the first dimension.
"""
module Lowbit

include("library.jl")
include("c_api.jl")
include("arrays.jl")
include("core.jl")
include("plan.jl")
include("calls.jl")
include("rule.jl")
include("extensions.jl")

"The names of the interface; none is exported."
const INTERFACE = (
    :BF16,
    :Context,
    :Error,
    :Optimizer,
    :Plan,
    :Spec,
    :State,
    :Tensor,
    :apply!,
    :checkpoint_json,
    :collect!,
    :compress!,
    :decompress,
    :decompress!,
    :default_context,
    :default_stream,
    :functional,
    :json,
    :libpath,
    :load!,
    :merge_checkpoint,
    :report,
    :reshard,
    :rule,
    :save,
    :set_library!,
    :setup,
    :statistics,
    :step!,
    :update!,
    :write_index,
)

@static if VERSION >= v"1.11"
    eval(Expr(:public, INTERFACE...))
end

end
