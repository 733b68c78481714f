# Finds the library without LOWBIT_LIBRARY; it is at EXPECTED_LIBRARY.

using Lowbit
using Test

include("caught.jl")

const EXPECTED = ENV["EXPECTED_LIBRARY"]
const SHARED = Sys.iswindows() ? "lowbit" : "liblowbit"

@testset "finding the library" begin
    @test Lowbit.find_library() == SHARED
    if !isdefined(Base, :get_preferences)
        @test Lowbit.preference("libpath") === nothing
        # Julia before 1.6 has no preferences: a stand-in for what Base does with LocalPreferences.toml.
        @eval Base get_preferences(uuid) =
            string(uuid) == "193744d9-bd12-49bc-b4a0-21c709ecd5b7" ? Dict("libpath" => "preferred") :
            Dict()
        @test Lowbit.find_library() == "preferred"
        error = caught(Lowbit.libpath)
        @test error isa ErrorException && occursin("preferred", error.msg)
        @test !Lowbit.functional()
    end
    Lowbit.set_library!(EXPECTED)
    @test Lowbit.find_library() == EXPECTED
    withenv("LOWBIT_LIBRARY" => "wins") do
        @test Lowbit.find_library() == "wins"
    end
    @test Lowbit.libpath() == EXPECTED
    @test Lowbit.functional()
end
