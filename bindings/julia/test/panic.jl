# Makes the library panic, which takes one built with the feature test-hooks.

using Lowbit
using Test
import Libdl

include("caught.jl")

const TEST_PANIC = Libdl.dlsym(
    Libdl.dlopen(Lowbit.libpath(), Libdl.RTLD_LAZY | Libdl.RTLD_LOCAL),
    :lowbit_test_panic,
)

test_panic(plan) = Lowbit.check(ccall(TEST_PANIC, Int32, (Ptr{Cvoid},), plan))

@testset "a panic becomes an error" begin
    param = zeros(Float32, 10)
    plan = Lowbit.Plan("adamw4", ["w" => param])
    step(plan) = Lowbit.step!(plan, [param], [ones(Float32, 10)], Lowbit.State(plan); step = 1)
    step(plan)
    error = caught(() -> test_panic(plan))
    @test error isa Lowbit.Error
    @test error.code == Lowbit.LOWBIT_STATUS_INTERNAL
    @test occursin("a planned panic", error.text)

    # The plan is poisoned and can still be freed; everything else works on.
    before = copy(param)
    error = caught(() -> step(plan))
    @test error isa Lowbit.Error && occursin("poisoned", error.text)
    @test param == before
    close(plan)
    step(Lowbit.Plan("adamw4", ["w" => param]))
    @test param != before

    # Through deep Julia frames, again and again.
    deep(n) = n == 0 ? test_panic(Lowbit.Plan("adamw4", ["w" => param])) : deep(n - 1)
    @test all(caught(() -> deep(100)) isa Lowbit.Error for _ in 1:100)
end
