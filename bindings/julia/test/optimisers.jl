# The rule for Optimisers.jl: the package if it is installed, else the stand-in in stubs/.

using Lowbit
using Serialization
using Test

include("caught.jl")
include("readme.jl")

const UNLOADED = caught(() -> Lowbit.rule("adamw4"))

push!(LOAD_PATH, joinpath(@__DIR__, "stubs"))
import Optimisers
println("Optimisers.jl is that of ", dirname(dirname(pathof(Optimisers))))

"A model with a function, and gradients of the step `t`."
model() = (
    layers = (
        (w = [Float32(sin(i * j)) for i in 1:90, j in 1:70], f = tanh),
        (w = ones(Float32, 5),),
    ),
    bias = Float32[1, 2, 3],
)
gradients(t) = (
    layers = (
        (w = [Float32(cos(t * i + j)) for i in 1:90, j in 1:70], f = nothing),
        (w = fill(t / 2.0f0, 5),),
    ),
    bias = Float32[-1, 0, t],
)
arrays(m) = [m.layers[1].w, m.layers[2].w, m.bias]
"Everything that an array's Leaf knows; equal if the steps that follow are."
state(leaf) = (leaf.state.step, map(copy, values(leaf.state.arrays)))
states(tree) = map(state, (tree.layers[1].w, tree.layers[2].w, tree.bias))

function trained(rule, steps)
    m = model()
    tree = Optimisers.setup(rule, m)
    foreach(t -> Optimisers.update!(tree, m, gradients(t)), 1:steps)
    return m, tree
end

@testset "the rule for Optimisers.jl" begin
    @test UNLOADED isa ArgumentError && occursin("using Optimisers", UNLOADED.msg)
    options = (eta = 1f-2, beta = (0.8, 0.99), lambda = 0.1)

    @testset "update! is a step, in place" begin
        m = model()
        kept = arrays(m)
        tree = Optimisers.setup(Lowbit.rule("adamw4"; options...), m)
        expected = deepcopy(m)
        opt = Lowbit.setup("adamw4", expected; options...)
        for t in 1:3
            _, new = Optimisers.update!(tree, m, gradients(t))
            @test all(map(===, arrays(new), kept))
            Lowbit.update!(opt, gradients(t))
        end
        @test arrays(m) == arrays(expected)
        leaf = tree.layers[1].w
        @test keys(leaf.state.arrays) == (:m_codes, :m_scales, :v_codes, :v_axis0, :v_axis1)
        @test leaf.state.arrays.v_axis0 == opt.state["layers.1.w/v/axis0"]
        @test leaf.state.step == 3
    end

    @testset "update leaves its arguments as they were" begin
        m, tree = trained(Lowbit.rule("adamw4"), 2)
        before, known = deepcopy(arrays(m)), states(tree)
        tree2, m2 = Optimisers.update(tree, m, gradients(3))
        @test arrays(m) == before && states(tree) == known
        Optimisers.update!(tree, m, gradients(3))
        @test arrays(m) == arrays(m2) && states(tree) == states(tree2)
    end

    @testset "adjust!" begin
        m, tree = trained(Lowbit.rule("adamw4"; options...), 1)
        expected = deepcopy(m)
        opt = Lowbit.setup("adamw4", deepcopy(model()); options...)
        Lowbit.update!(opt, gradients(1))
        Optimisers.adjust!(tree, 1f-3)
        opt.eta = 1f-3
        Optimisers.update!(tree, m, gradients(2))
        Lowbit.update!(opt, gradients(2))
        @test arrays(m) == opt.params
        Optimisers.adjust!(tree; lambda = 0, beta = (0.5, 0.9), epsilon = 1e-6)
        opt.lambda, opt.beta, opt.epsilon = 0, (0.5, 0.9), 1e-6
        Optimisers.update!(tree, m, gradients(3))
        Lowbit.update!(opt, gradients(3))
        @test arrays(m) == opt.params && arrays(m) != arrays(expected)
    end

    @testset "freeze! and thaw!" begin
        m, tree = trained(Lowbit.rule("adamw4"), 1)
        before = deepcopy(arrays(m))
        Optimisers.freeze!(tree.layers)
        Optimisers.update!(tree, m, gradients(2))
        @test arrays(m)[1:2] == before[1:2] && m.bias != before[3]
        @test tree.layers[1].w.state.step == 1
        Optimisers.thaw!(tree)
        Optimisers.update!(tree, m, gradients(3))
        @test arrays(m)[1] != before[1] && tree.layers[1].w.state.step == 2
    end

    @testset "chains, in which it is the last" begin
        chain = Optimisers.OptimiserChain(Optimisers.ClipGrad(0.25), Lowbit.rule("adamw4"))
        m, tree = trained(chain, 2)
        expected, other = model(), nothing
        other = Optimisers.setup(Lowbit.rule("adamw4"), expected)
        for t in 1:2
            g = gradients(t)
            clipped(x) = clamp.(x, -0.25f0, 0.25f0)
            layers = map(l -> (w = clipped(l.w), f = nothing), g.layers)
            Optimisers.update!(other, expected, (layers = layers, bias = clipped(g.bias)))
        end
        @test arrays(m) == arrays(expected)
    end

    @testset "tied arrays are one parameter" begin
        shared = ones(Float32, 4)
        m = (a = shared, b = shared)
        tree = Optimisers.setup(Lowbit.rule("adamw4"), m)
        @test tree.a === tree.b
        Optimisers.update!(tree, m, (a = fill(1f0, 4), b = fill(2f0, 4)))
        alone = [ones(Float32, 4)]
        opt = Lowbit.setup("adamw4", alone)
        Lowbit.update!(opt, [fill(3f0, 4)])
        @test m.a === m.b && m.a == alone[1]
        @test tree.a.state.step == 1
    end

    @testset "absent gradients, and of other types" begin
        m, tree = trained(Lowbit.rule("adamw4"), 1)
        before = deepcopy(arrays(m))
        first_layer = (w = Float64.(gradients(2).layers[1].w), f = nothing)
        wide = (layers = (first_layer, nothing), bias = nothing)
        Optimisers.update!(tree, m, wide)
        @test arrays(m)[2:3] == before[2:3]
        same, tree2 = trained(Lowbit.rule("adamw4"), 1)
        Optimisers.update!(tree2, same, gradients(2))
        @test arrays(m)[1] == arrays(same)[1]

        half = (w = Float16.(randn(200, 30)),)
        tree = Optimisers.setup(Lowbit.rule("adamw4"; weights = :master), half)
        @test eltype(tree.w.state.arrays.weights_master) == Float32
        kept = copy(half.w)
        Optimisers.update!(tree, half, (w = randn(Float32, 200, 30),))
        Optimisers.update!(tree, half, (w = Float16.(randn(200, 30)),))
        @test half.w != kept && all(isfinite, half.w)
    end

    @testset "what does not fit is refused" begin
        error = caught(() -> Optimisers.setup(Lowbit.rule("adamw4"), (w = zeros(3),)))
        @test error isa ArgumentError && occursin("Float64", error.msg)
        strided = view(zeros(Float32, 8), 1:2:8)
        error = caught(() -> Optimisers.init(Lowbit.rule("adamw4"), strided))
        @test error isa ArgumentError && occursin("not contiguous", error.msg)
        @test_throws Lowbit.Error Lowbit.rule("adamw3")
        m = (w = ones(Float32, 6),)
        tree = Optimisers.setup(Lowbit.rule("adamw4"), m)
        @test_throws DimensionMismatch Optimisers.update!(tree, m, (w = ones(Float32, 5),))
        @test m.w == ones(6) && tree.w.state.step == 0
    end

    @testset "a tree is plain data" begin
        m, tree = trained(Lowbit.rule("adamw4"), 2)
        stream = IOBuffer()
        serialize(stream, (m, tree))
        m2, tree2 = deserialize(seekstart(stream))
        copied, tree3 = deepcopy((m, tree))
        for (model, tree) in ((m, tree), (m2, tree2), (copied, tree3))
            Optimisers.update!(tree, model, gradients(3))
        end
        @test arrays(m) == arrays(m2) == arrays(copied)
        @test states(tree) == states(tree2) == states(tree3)
        @test occursin("lambda = 0.01", repr(tree.bias.rule))
    end

    @testset "random rounding" begin
        spec = """{"optimizer": "sgdm", "threshold": 0, "m": {"bits": 4, "normalization": "block",
                   "block": 128, "mapping": "de", "rounding": "stochastic"}}"""
        function run()
            m = (a = zeros(Float32, 128, 40), b = zeros(Float32, 128, 40))
            tree = Optimisers.setup(Lowbit.rule(spec), m)
            g = [Float32(sin(i * j)) for i in 1:128, j in 1:40]
            foreach(_ -> Optimisers.update!(tree, m, (a = g, b = g)), 1:2)
            return m
        end
        m = run()
        @test m.a != m.b
        @test m == run()
    end

    @testset "the README" begin
        into, count = run_readme("Optimisers")
        @test count == 1
        @test Core.eval(into, :(state.weight.state.step)) == 1
    end
end
