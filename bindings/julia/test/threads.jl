# Needs two threads of Julia: JULIA_NUM_THREADS=2.

using Lowbit
using Random
using Test

arrays(seed) = [randn(MersenneTwister(seed + i), Float32, 60, 50 + i) for i in 1:8]

function train(plan, seed)
    params, state = arrays(seed), Lowbit.State(plan)
    for t in 1:20
        Lowbit.step!(plan, params, arrays(seed + 100t), state; step = t)
    end
    return params, state
end

"""
How long the collections on one thread take that end while another is in a step, in seconds, and how
long the step takes.
"""
function collections_during_a_step()
    count = 16_000_000
    context = Lowbit.Context(threads = 1, variant = :reference)
    params, grads = [zeros(Float32, count)], [ones(Float32, count)]
    plan = Lowbit.Plan("adamw32", ["w" => params[1]]; context = context)
    state = Lowbit.State(plan)
    Lowbit.step!(plan, params, grads, state; step = 1)
    started, done = Threads.Atomic{Bool}(false), Threads.Atomic{Bool}(false)
    collections, duration = Float64[], 0.0
    Threads.@threads for thread in 1:2
        if thread == 1
            while !started[]
                GC.safepoint()
            end
            while !done[]
                elapsed = @elapsed GC.gc(false)
                done[] || push!(collections, elapsed)
            end
        else
            started[] = true
            duration = @elapsed Lowbit.step!(plan, params, grads, state; step = 2)
            done[] = true
        end
    end
    return collections, duration
end

@testset "threads" begin
    @test Threads.nthreads() == 2

    # One plan, several states at once, with collections in between.
    plan = Lowbit.Plan("adamw4", ["w$i" => w for (i, w) in enumerate(arrays(0))])
    results = Vector{Any}(undef, 16)
    Threads.@threads for i in 1:16
        results[i] = train(plan, i)
        GC.gc()
    end
    @test all(results[i] == train(plan, i) for i in 1:16)

    # A thread has its own error text.
    texts = Vector{String}(undef, 200)
    Threads.@threads for i in 1:200
        texts[i] = try
            Lowbit.Spec("no-$i-such")
        catch error
            error.text
        end
    end
    @test all(occursin("no-$i-such", texts[i]) for i in 1:200)

    # If the step held up the collector, one or two would end: those before it begins.
    collections, duration = collections_during_a_step()
    println(
        length(collections), " collections during a step of ", round(Int, 1e3 * duration),
        " ms, the longest of ", round(Int, 1e3 * maximum(collections)), " ms",
    )
    @test length(collections) > 5
end
