# Trains one array in shards, on two processes of Distributed.jl that all-reduce through this one; the
# bits are those of an array in one piece.

using Distributed
using Lowbit
using Test

const WHOLE = (256, 40)
const COLUMNS = [1:25, 26:40]

addprocs(length(COLUMNS); exeflags = "--project=$(Base.active_project())")

@everywhere begin
    using Lowbit

    start(whole) = [sin(Float32(i * j)) for i in 1:whole[1], j in 1:whole[2]]
    slope(whole, t) = [cos(Float32(t * i + j)) for i in 1:whole[1], j in 1:whole[2]]

    "Three steps of the columns; `mine` takes this process's values away, `theirs` has the results."
    function train(spec, whole, columns, mine, theirs)
        shard = start(whole)[:, columns]
        tensor = Lowbit.Tensor("w", shard; whole = whole, first = (1, first(columns)))
        plan = Lowbit.Plan(spec, [tensor])
        state = Lowbit.State(plan)
        for t in 1:3
            grad = slope(whole, t)[:, columns]
            Lowbit.step!(plan, [shard], [grad], state; step = t) do values, op
                put!(mine, (Vector(values), op))
                copyto!(values, take!(theirs))
            end
        end
        put!(mine, nothing)
        return shard
    end
end

"Combines what comes from all until they are done."
function reduce_all(from, to)
    count = 0
    while true
        given = map(take!, from)
        any(isnothing, given) && return count
        op = given[1][2]
        result = reduce((a, b) -> op.(a, b), map(first, given))
        foreach(channel -> put!(channel, result), to)
        count += 1
    end
end

@testset "$spec" for (spec, reductions) in ["adamw4" => 1, "factor4" => 2, "adafactor" => 4]
    from = [RemoteChannel(() -> Channel(1)) for _ in COLUMNS]
    to = [RemoteChannel(() -> Channel(1)) for _ in COLUMNS]
    shards = map(workers(), COLUMNS, from, to) do worker, columns, mine, theirs
        remotecall(train, worker, spec, WHOLE, columns, mine, theirs)
    end
    @test reduce_all(from, to) == 3 * reductions
    # Of the same name, which random numbers are drawn by.
    whole = start(WHOLE)
    plan = Lowbit.Plan(spec, [Lowbit.Tensor("w", whole)])
    state = Lowbit.State(plan)
    foreach(t -> Lowbit.step!(plan, [whole], [slope(WHOLE, t)], state; step = t), 1:3)
    @test hcat(map(fetch, shards)...) == whole
end

rmprocs(workers())
