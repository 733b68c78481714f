# Times a step of Lowbit.jl beside AdamW in plain Julia on the same parameters and gradients.
#
#     julia --project=bindings/julia tests/bench/julia_step.jl [SIDE [ROUNDS]]
#
# One matrix of SIDE x SIDE, and 300 small ones; all contestants have as many threads as Julia
# (JULIA_NUM_THREADS). Each takes a step per round, in an order drawn anew; ratios are of one round, and
# medians of those. Set LOWBIT_LIBRARY.

using Lowbit
using Printf
using Random
using Statistics

push!(LOAD_PATH, joinpath(@__DIR__, "..", "..", "bindings", "julia", "test", "stubs"))
import Optimisers

const ETA, BETA, EPSILON, LAMBDA = 1.0f-3, (0.9f0, 0.999f0), 1.0f-8, 0.01f0

"AdamW in broadcasts as Optimisers.jl writes it: two for the moments, one for the parameters."
function broadcasts!(params, grads, m, v, t)
    c1, c2 = 1 - BETA[1]^t, 1 - BETA[2]^t
    for (x, dx, mt, vt) in zip(params, grads, m, v)
        @. mt = BETA[1] * mt + (1 - BETA[1]) * dx
        @. vt = BETA[2] * vt + (1 - BETA[2]) * abs2(dx)
        @. x -= ETA * (mt / c1 / (sqrt(vt / c2) + EPSILON) + LAMBDA * x)
    end
end

"The same in one loop, over all of Julia's threads."
function loop!(params, grads, m, v, t)
    c1, c2 = 1 - BETA[1]^t, 1 - BETA[2]^t
    for (x, dx, mt, vt) in zip(params, grads, m, v)
        parts = length(x) < 100_000 ? 1 : Threads.nthreads()
        size = cld(length(x), parts)
        if parts == 1
            loop_part!(x, dx, mt, vt, c1, c2, 1:length(x))
        else
            Threads.@threads for part in 1:parts
                range = (part-1)*size+1:min(part * size, length(x))
                loop_part!(x, dx, mt, vt, c1, c2, range)
            end
        end
    end
end

function loop_part!(x, dx, m, v, c1, c2, range)
    # A root that throws would keep the loop from becoming vectors.
    root(a) = @fastmath sqrt(a)
    @inbounds @simd ivdep for i in range
        mt = BETA[1] * m[i] + (1 - BETA[1]) * dx[i]
        vt = BETA[2] * v[i] + (1 - BETA[2]) * abs2(dx[i])
        x[i] -= ETA * (mt / c1 / (root(vt / c2) + EPSILON) + LAMBDA * x[i])
        m[i], v[i] = mt, vt
    end
end

"Steps by name, each a function of the step's number; the first is what others are compared with."
function contestants(params, grads)
    m, v = map(zero, params), map(zero, params)
    context = Lowbit.Context(threads = Threads.nthreads())
    steps = Pair{String,Any}[
        "plain Julia, broadcasts" => t -> broadcasts!(params, grads, m, v, t),
        "plain Julia, one loop" => t -> loop!(params, grads, m, v, t),
    ]
    for spec in ("adamw32", "adamw4-block", "adamw4")
        opt = Lowbit.setup(spec, params; eta = ETA, lambda = LAMBDA, context = context)
        push!(steps, "Lowbit, $spec" => t -> Lowbit.update!(opt, grads))
    end
    if length(params) > 1
        tree = Optimisers.setup(Lowbit.rule("adamw4"; eta = ETA), Tuple(params))
        nest = Tuple(grads)
        update(t) = Optimisers.update!(tree, Tuple(params), nest)
        push!(steps, "adamw4 by Optimisers.update!" => update)
    end
    return steps
end

function measure(title, params, grads, rounds)
    steps = contestants(params, grads)
    times = zeros(length(steps), rounds)
    for round in -1:rounds, i in shuffle(eachindex(steps))
        elapsed = @elapsed steps[i][2](round + 2)
        round > 0 && (times[i, round] = elapsed)
    end
    count = sum(length, params)
    @printf("\n%s: %.1f M parameters, ", title, count / 1e6)
    @printf("%d thread(s), medians of %d rounds\n\n", Threads.nthreads(), rounds)
    println("| | ms | ns/param | broadcasts / it | one loop / it |\n|---|--:|--:|--:|--:|")
    for (i, (name, _)) in enumerate(steps)
        time = median(times[i, :])
        ratio(j) = median(times[j, :] ./ times[i, :])
        @printf("| %s | %.2f | %.2f ", name, 1e3 * time, 1e9 * time / count)
        @printf("| %.2f | %.2f |\n", ratio(1), ratio(2))
    end
    flush(stdout)
end

function main(side = 8192, rounds = 7)
    rng = MersenneTwister(0)
    random(sizes) = [randn(rng, Float32, size) for size in sizes]
    small, large = [(64, 64 + i % 3) for i in 1:300], [(side, side)]
    measure("300 matrices of 64 x 64 to 66", random(small), random(small), 10 * rounds)
    measure("one matrix", random(large), random(large), rounds)
end

main(map(argument -> parse(Int, argument), ARGS)...)
