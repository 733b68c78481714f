# Prints the hashes of tests/common/README.md.
#
#     julia --project=bindings/julia bindings/julia/test/conformance.jl [FILE]
#
# Given a file of expected lines, exits with 1 if there is a difference.

using Lowbit

include("common.jl")

# Sizes are the shapes reversed: the same bytes in the same order.
const SIZES = map(reverse, [
    (1,),
    (4096,),
    (4097,),
    (300, 257),
    (64, 3, 3, 3),
    (512, 1024),
    (2, 3, 5, 7, 11),
])
const TYPES = Dict("f32" => Float32, "bf16" => Lowbit.BF16, "f16" => Float16)

arrays(f, first, type) = map(enumerate(SIZES)) do (i, size)
    values = numbers(f, first + i - 1, size)
    type == Lowbit.BF16 ? truncated(values) : type == Float16 ? truncated16(values) : values
end

"The line of a line of cases.txt."
function run_case(line)
    name, param, grad, weights, steps, spec = split(line, ' ')
    params = arrays(param_number, 0, TYPES[param])
    tensors = map(enumerate(params)) do (i, p)
        Lowbit.Tensor("t$(i - 1)", p; grad = TYPES[grad], weights = Symbol(weights))
    end
    plan = Lowbit.Plan(spec, tensors)
    state = Lowbit.State(plan)
    for t in 1:parse(Int, steps)
        grads = arrays(grad_number, 1000t, TYPES[grad])
        Lowbit.step!(plan, params, grads, state; step = t, lr = 2.0f0^-10)
    end
    return "$name $(fingerprint(params, state))"
end

function main(arguments)
    folder = joinpath(@__DIR__, "..", "..", "..", "tests", "common")
    lines = map(run_case, readlines(joinpath(folder, "cases.txt")))
    foreach(println, lines)
    isempty(arguments) && return 0
    lines == readlines(arguments[1]) && return 0
    println(stderr, "these are not the lines of ", arguments[1])
    return 1
end

exit(main(ARGS))
