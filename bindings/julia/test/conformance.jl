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
const DTYPES = ["f32" => (false, false), "bf16" => (true, true), "mixed" => (true, false)]

arrays(f, first, bf16) = map(enumerate(SIZES)) do (i, size)
    values = numbers(f, first + i - 1, size)
    bf16 ? truncated(values) : values
end

function run_case(preset, param_bf16, grad_bf16)
    params = arrays(param_number, 0, param_bf16)
    grad = grad_bf16 ? Lowbit.BF16 : Float32
    tensors = [Lowbit.Tensor("t$(i - 1)", p; grad = grad) for (i, p) in enumerate(params)]
    plan = Lowbit.Plan(preset, tensors)
    state = Lowbit.State(plan)
    for t in 1:10
        grads = arrays(grad_number, 1000t, grad_bf16)
        Lowbit.step!(plan, params, grads, state; step = t, lr = 2.0f0^-10)
    end
    return fingerprint(params, state)
end

function main(arguments)
    lines = [
        "$preset $name $(run_case(preset, param, grad))"
        for preset in ["adamw32", "adamw4", "adamw4-block"] for (name, (param, grad)) in DTYPES
    ]
    foreach(println, lines)
    isempty(arguments) && return 0
    expected = filter(!isempty, readlines(arguments[1]))
    lines == expected && return 0
    println(stderr, "expected, in ", arguments[1], ":")
    foreach(line -> println(stderr, line), expected)
    return 1
end

exit(main(ARGS))
