# Plans of a CUDA device with CUDA.jl's arrays. CUDA.jl is the stand-in in stubs/, whose arrays are in the
# memory of the mock driver of tests/cuda, which is the host's; the driver's folder is on LD_LIBRARY_PATH.

pushfirst!(LOAD_PATH, joinpath(@__DIR__, "stubs"))
using CUDA
# An extension is loaded whichever of the two packages comes first; in optimisers.jl it is Lowbit.
using Lowbit
using Test

include("caught.jl")
include("readme.jl")

function model()
    weight = Lowbit.BF16([Float32(i * j % 511 - 255) / 128 for i in 1:130, j in 1:96])
    bias = Lowbit.BF16([Float32(i) / 64 for i in 1:130])
    grads = [[Float32(i * j % 23) / 1024 - 0.01f0 for i in 1:130, j in 1:96], ones(Float32, 130)]
    return [weight, bias], grads
end

to_device(array::Array) = CuArray(copy(array))
to_device(array::Lowbit.BF16) = Lowbit.BF16(to_device(array.bits))
to_host(array::CuArray) = Array(array)
to_host(array::Lowbit.BF16) = array.bits isa CuArray ? Array(array.bits) : array.bits

@testset "a CUDA device" begin
    error = caught(() -> Lowbit.Context(1))
    @test error isa Lowbit.Error && occursin("device is 1", error.text)
    device = Lowbit.Context(CUDA.device())
    stream = CUDA.stream().handle
    @test !device.on_host

    @testset "$spec" for spec in ["adamw4", "adamw4-block", "adamw32"]
        params, grads = model()
        tensors = [
            Lowbit.Tensor("weight", params[1]; grad = Float32),
            Lowbit.Tensor("bias", params[2]; grad = Float32),
        ]
        on_host = Lowbit.Plan(spec, tensors; context = Lowbit.Context(variant = :reference))
        plan = Lowbit.Plan(spec, tensors; context = device)
        device_params, device_grads = map(to_device, params), map(to_device, grads)
        state, device_state = Lowbit.State(on_host), Lowbit.State(plan; zeros = CUDA.zeros)
        same() =
            map(to_host, params) == map(to_host, device_params) &&
            collect(values(state)) == map(to_host, collect(values(device_state)))

        skipped = CUDA.zeros(Int64, (2,))
        for step in 1:3
            Lowbit.step!(on_host, params, grads, state; step = step)
            Lowbit.step!(
                plan,
                device_params,
                device_grads,
                device_state;
                step = step,
                skipped = skipped,
                stream = stream,
            )
            @test same()
        end
        @test Array(skipped) == [0, 0]

        # In stages, with numbers that the device reads.
        hyper = to_device(Float32[1f-3, 0.9f0, 0.999f0, 1f-8, 0.01f0, 1, 1, 0])
        options = (step = 9, hyper = hyper, number = to_device(Int32[4]), stream = stream)
        for stage in 1:length(plan.stages)
            Lowbit.collect!(plan, stage, device_params, device_grads, device_state; options...)
        end
        Lowbit.apply!(plan, device_params, device_grads, device_state; options...)
        Lowbit.step!(on_host, params, grads, state; step = 4)
        @test same()

        # To values and back, and through a file.
        values_ = [CUDA.zeros(Float32, size(p)) for p in params]
        Lowbit.decompress!(plan, "m", device_state, values_; stream = stream)
        @test map(to_host, values_) == Lowbit.decompress(on_host, "m", state)
        Lowbit.compress!(plan, "m", values_, device_state; stream = stream)
        Lowbit.compress!(on_host, "m", map(to_host, values_), state)
        @test same()
        mktempdir() do folder
            path = joinpath(folder, "state")
            Lowbit.save(plan, path, device_state; step = 4, stream = stream)
            again = Lowbit.State(plan; zeros = CUDA.zeros)
            @test Lowbit.load!(plan, path, again; stream = stream) == 4
            @test map(to_host, values(again)) == map(to_host, values(device_state))
            @test Lowbit.load!(on_host, path, Lowbit.State(on_host)) == 4
        end

        # Arrays in the other memory, and choices that are the host's.
        step(p, g, s; options...) =
            Lowbit.step!(plan, p, g, s; step = 5, stream = stream, options...)
        for (f, text) in [
            (() -> step(params, device_grads, device_state)) => "params[1] (weight)",
            (() -> step(device_params, grads, device_state)) => "grads[1] (weight)",
            (() -> step(device_params, device_grads, state)) => "the state's weight/m",
            (() -> step(device_params, device_grads, device_state; skipped = [0, 0])) => "skipped",
            (() -> step(device_params, device_grads, device_state; groups = [(lr = 1,)])) =>
                "groups",
            (() -> step(device_params, device_grads, device_state; hyper = hyper)) => "together",
            (() -> Lowbit.step!(on_host, device_params, grads, state; step = 5)) =>
                "in a device's memory",
        ]
            error = caught(f)
            @test error isa ArgumentError && occursin(text, error.msg)
        end
    end
end

@testset "CUDA.jl's arrays where the host's are taken" begin
    params, grads = model()
    opt = Lowbit.setup("adamw4", params; grad = Float32)
    on_device = map(to_device, params)
    device_opt = Lowbit.setup("adamw4", on_device; grad = Float32)
    @test !device_opt.plan.on_host
    @test all(array isa CuArray for array in values(device_opt.state))
    for _ in 1:3
        Lowbit.update!(opt, grads)
        Lowbit.update!(device_opt, map(to_device, grads))
    end
    @test map(to_host, on_device) == map(to_host, params)
    # Gradients of another type are converted where they are.
    Lowbit.update!(opt, map(g -> Float64.(g), grads))
    Lowbit.update!(device_opt, [CuArray(Float64.(g)) for g in grads])
    @test map(to_host, on_device) == map(to_host, params)

    # One context for all arrays of a device, and another once it is closed.
    context = Lowbit.default_context(on_device[1].bits)
    @test context === Lowbit.default_context(CUDA.zeros(Float32, (3,)))
    close(context)
    @test isopen(Lowbit.default_context(on_device[1].bits))

    # The stream is that of the task in which the call is made.
    state = Lowbit.State(device_opt.plan; zeros = CUDA.zeros)
    here = Lowbit.default_stream(state)
    @test here == CUDA.stream().handle != C_NULL
    @test fetch(@async Lowbit.default_stream(state)) != here
    @test Lowbit.default_stream(opt.state) == C_NULL

    # Both memories in one optimizer, and the device's gradients for the host's parameters.
    error = caught(() -> Lowbit.setup("adamw4", [zeros(Float32, 3), CUDA.zeros(Float32, (3,))]))
    @test error isa ArgumentError && occursin("2 is a", error.msg)
    error = caught(() -> Lowbit.update!(device_opt, grads))
    @test error isa ArgumentError && occursin("grads[1]", error.msg)
end

@testset "the README" begin
    into, count = run_readme("CUDA")
    @test count == 1
    @test Core.eval(into, :(opt.step)) == 1
end

import Optimisers

@testset "the rule for Optimisers.jl" begin
    w, g = model()[2]
    m, on_device = (w = copy(w), b = copy(g)), (w = CuArray(copy(w)), b = CuArray(copy(g)))
    tree = Optimisers.setup(Lowbit.rule("adamw4"), m)
    device_tree = Optimisers.setup(Lowbit.rule("adamw4"), on_device)
    for _ in 1:3
        Optimisers.update!(tree, m, (w = w, b = g))
        Optimisers.update!(device_tree, on_device, (w = CuArray(w), b = CuArray(g)))
    end
    @test map(to_host, values(on_device)) == values(m)
    state = device_tree.w.state
    @test state.scratch isa CuArray && all(array isa CuArray for array in state.arrays)
end
