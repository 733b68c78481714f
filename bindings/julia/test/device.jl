# Plans of a CUDA device, with the mock driver of tests/cuda: its folder is on LD_LIBRARY_PATH, its
# device memory is the host's. The arrays here are in it, and are no Arrays, like CUDA.jl's.

using Lowbit
using Test

include("caught.jl")

primitive type DevicePtr 64 end

struct DeviceArray{T,N} <: DenseArray{T,N}
    memory::Array{T,N}
end
Base.size(array::DeviceArray) = size(array.memory)
Base.pointer(array::DeviceArray) = reinterpret(DevicePtr, UInt(pointer(array.memory)))
device_zeros(type, size) = DeviceArray(zeros(type, size))

const STREAM = Ptr{Cvoid}(UInt(0x57))

function model()
    weight = Lowbit.BF16([Float32(i * j % 511 - 255) / 128 for i in 1:130, j in 1:96])
    bias = Lowbit.BF16([Float32(i) / 64 for i in 1:130])
    grads = [[Float32(i * j % 23) / 1024 - 0.01f0 for i in 1:130, j in 1:96], ones(Float32, 130)]
    return [weight, bias], grads
end

to_device(array::Array) = DeviceArray(copy(array))
to_device(array::Lowbit.BF16) = Lowbit.BF16(to_device(array.bits))
to_host(array::DeviceArray) = array.memory
to_host(array::Lowbit.BF16) = array.bits isa DeviceArray ? array.bits.memory : array.bits

@testset "a CUDA device" begin
    error = caught(() -> Lowbit.Context(1))
    @test error isa Lowbit.Error && occursin("device is 1", error.text)
    device = Lowbit.Context(0)
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
        state, device_state = Lowbit.State(on_host), Lowbit.State(plan; zeros = device_zeros)
        same() =
            map(to_host, params) == map(to_host, device_params) &&
            collect(values(state)) == map(to_host, collect(values(device_state)))

        skipped = DeviceArray(zeros(Int64, 2))
        for step in 1:3
            Lowbit.step!(on_host, params, grads, state; step = step)
            Lowbit.step!(
                plan,
                device_params,
                device_grads,
                device_state;
                step = step,
                skipped = skipped,
                stream = STREAM,
            )
            @test same()
        end
        @test skipped.memory == [0, 0]

        # In stages, with numbers that the device reads.
        hyper = to_device(Float32[1f-3, 0.9f0, 0.999f0, 1f-8, 0.01f0, 1, 1, 0])
        options = (step = 9, hyper = hyper, number = to_device(Int32[4]), stream = STREAM)
        for stage in 1:length(plan.stages)
            Lowbit.collect!(plan, stage, device_params, device_grads, device_state; options...)
        end
        Lowbit.apply!(plan, device_params, device_grads, device_state; options...)
        Lowbit.step!(on_host, params, grads, state; step = 4)
        @test same()

        # To values and back, and through a file.
        values_ = [device_zeros(Float32, size(p)) for p in params]
        Lowbit.decompress!(plan, "m", device_state, values_; stream = STREAM)
        @test map(to_host, values_) == Lowbit.decompress(on_host, "m", state)
        Lowbit.compress!(plan, "m", values_, device_state; stream = STREAM)
        Lowbit.compress!(on_host, "m", map(to_host, values_), state)
        @test same()
        mktempdir() do folder
            path = joinpath(folder, "state")
            Lowbit.save(plan, path, device_state; step = 4, stream = STREAM)
            again = Lowbit.State(plan; zeros = device_zeros)
            @test Lowbit.load!(plan, path, again; stream = STREAM) == 4
            @test map(to_host, values(again)) == map(to_host, values(device_state))
            @test Lowbit.load!(on_host, path, Lowbit.State(on_host)) == 4
        end

        # Arrays in the other memory, and choices that are the host's.
        step(p, g, s; options...) =
            Lowbit.step!(plan, p, g, s; step = 5, stream = STREAM, options...)
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
