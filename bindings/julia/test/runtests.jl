# LOWBIT_LIBRARY=... julia --project=bindings/julia bindings/julia/test/runtests.jl
#
# LOWBIT_TEST_LIBRARY has to name a library that was built with the feature test-hooks.

using Lowbit
import Libdl
using Random
using Test

include("caught.jl")
include("common.jl")

const FOLDER = @__DIR__

module DocTests
include("doctests.jl")
end

module OptimisersTests
include("optimisers.jl")
end

bits(array) = memory(array)

const OTHER_LIBRARY = last(filter(path -> !occursin("lowbit", path), Libdl.dllist()))

"An array whose memory is no host's."
struct Elsewhere <: DenseArray{Float32,1}
    memory::Vector{Float32}
end
Base.size(array::Elsewhere) = size(array.memory)
Base.pointer(::Elsewhere) = UInt(0)

"A model of one quantized and one small tensor, and its gradients."
function example(; seed = 1)
    rng = MersenneTwister(seed)
    params = [randn(rng, Float32, 100, 90), randn(rng, Float32, 7)]
    grads = [randn(rng, Float32, size(p)) for p in params]
    return params, grads
end

named(params) = ["weight" => params[1], "bias" => params[2]]

"The model and its state after a step."
function stepped(; options...)
    params, grads = example()
    plan = Lowbit.Plan("adamw4", named(params))
    state = Lowbit.State(plan)
    Lowbit.step!(plan, params, grads, state; step = 1, options...)
    return params, state
end

"Runs another file of this folder in a Julia of its own; true if it exits with 0."
function passes(file; environment...)
    command = `$(Base.julia_cmd()) --project=$(Base.active_project()) $(joinpath(FOLDER, file))`
    changes = Dict(string(key) => value for (key, value) in environment)
    command = setenv(command, merge(Dict(ENV), changes))
    return success(pipeline(command; stdout = stdout, stderr = stderr))
end

@testset "Lowbit" begin
    @testset "structs have the layout of lowbit.h" begin
        for (type, bytes) in [
            Lowbit.lowbit_quantizer_info_t => 64,
            Lowbit.lowbit_override_info_t => 40,
            Lowbit.lowbit_spec_info_t => 104,
            Lowbit.lowbit_adafactor_info_t => 32,
            Lowbit.lowbit_cpu_info_t => 48,
            Lowbit.lowbit_cuda_info_t => 24,
            Lowbit.lowbit_tensor_info_t => 72,
            Lowbit.lowbit_plan_info_t => 72,
            Lowbit.lowbit_tensor_report_t => 64,
            Lowbit.lowbit_buffer_info_t => 64,
            Lowbit.lowbit_stage_info_t => 32,
            Lowbit.lowbit_buffer_t => 16,
            Lowbit.lowbit_step_args_t => 152,
            Lowbit.lowbit_checkpoint_info_t => 16,
            Lowbit.lowbit_save_args_t => 88,
            Lowbit.lowbit_load_args_t => 88,
        ]
            @test isbitstype(type)
            @test sizeof(type) == bytes
        end
        args = Lowbit.lowbit_step_args_t
        offset(field) = fieldoffset(args, findfirst(isequal(field), fieldnames(args)))
        @test offset(:scratch) == 64
        @test offset(:lr) == 80
        @test offset(:step) == 112
        @test offset(:skipped) == 144
        defaults = args()
        @test defaults.struct_size == 152
        @test defaults.beta2 === 0.999f0
        @test defaults.step === Int32(1)
    end

    @testset "library" begin
        @test Lowbit.functional()
        @test isfile(Lowbit.libpath())
        @test Lowbit.set_library!(Lowbit.libpath()) === nothing
        @test_throws ErrorException Lowbit.set_library!("another.so")
        major, minor = Lowbit.LOWBIT_ABI_MAJOR, Lowbit.LOWBIT_ABI_MINOR
        @test Lowbit.check_abi("x.so", "9.9.9", major, minor + 1) === nothing
        text = caught(() -> Lowbit.check_abi("x.so", "9.9.9", major + 1, 7)).msg
        @test occursin("ABI $(major + 1).7", text) && occursin("ABI $major.$minor", text)
        @test occursin("lowbit 9.9.9", text) && occursin("Lowbit.jl 0.1.0", text)
        @test_throws ErrorException Lowbit.check_abi("x.so", "9.9.9", major, minor - 1)
        text = caught(() -> Lowbit.open_library(joinpath(FOLDER, "no.so"))).msg
        @test occursin("no.so", text) && occursin("LOWBIT_LIBRARY", text)
        @test occursin("no lowbit library", caught(() -> Lowbit.open_library(OTHER_LIBRARY)).msg)
        # A step looks its function up where nothing may be allocated.
        lookup() = Lowbit.sym(:lowbit_step) == C_NULL
        lookup()
        @test @allocated(lookup()) == 0
        # Other ways than the environment, each in a process of its own.
        @test passes("find.jl"; LOWBIT_LIBRARY = "", EXPECTED_LIBRARY = Lowbit.libpath())
    end

    @testset "the package" begin
        @test isempty(detect_ambiguities(Lowbit))
        @test isempty(detect_unbound_args(Lowbit))
    end

    @testset "specs" begin
        spec = Lowbit.Spec("adamw4")
        @test Lowbit.json(Lowbit.Spec(Lowbit.json(spec))) == Lowbit.json(spec)
        @test occursin("rank1", string(spec))
        error = caught(() -> Lowbit.Spec("adamw3"))
        @test error isa Lowbit.Error
        @test error.code == Lowbit.LOWBIT_STATUS_INVALID_ARGUMENT
        @test error.name == "INVALID_ARGUMENT"
        @test occursin("\"adamw3\"", error.text) && occursin("adamw4-block", error.text)
        @test occursin(error.text, sprint(showerror, error))
        @test_throws Lowbit.Error Lowbit.Spec("{\"optimiser\": 1}")
    end

    @testset "plans and states" begin
        params, _ = example()
        plan = Lowbit.Plan("adamw4", named(params))
        state = Lowbit.State(plan)
        @test collect(keys(state)) == [
            "weight/m/codes",
            "weight/m/scales",
            "weight/v/codes",
            "weight/v/axis0",
            "weight/v/axis1",
            "bias/m/value",
            "bias/v/value",
        ]
        # (100, 90) is the library's (90, 100): axis 0 is the last of Julia's.
        @test length(state["weight/v/axis0"]) == 90
        @test length(state["weight/v/axis1"]) == 100
        @test size(state["bias/m/value"]) == (7,)
        @test all(iszero, Iterators.flatten(values(state)))
        @test plan.state_bytes == sum(sizeof, values(state))
        @test occursin("[90, 100]", Lowbit.report(plan))
        @test occursin("2 tensors", string(plan))
        other = copy(state)
        @test other == state
        fill!(other["bias/v/value"], 1)
        @test other != state && state["bias/v/value"][1] == 0
        @test_throws KeyError state["bias"]

        scalar = Lowbit.Plan("adamw4", ["s" => fill(1.0f0)])
        @test size(Lowbit.State(scalar)["s/m/value"]) == ()
        @test isempty(Lowbit.State(Lowbit.Plan("adamw4", [])))
        @test_throws ArgumentError Lowbit.Plan("adamw4", ["w" => zeros(3)])
        @test_throws ArgumentError Lowbit.Tensor("w", Float32, (3,); grad = Float64)
        @test_throws Lowbit.Error Lowbit.Plan("adamw4", ["w" => params[1], "w" => params[2]])
    end

    # The rounding steps of one element as the library defines them.
    function adamw(p, g, m, v, t; lr, beta1, beta2, eps, weight_decay, grad_scale = 1.0f0)
        inv_sqrt_bc2 = Float32(1 / sqrt(1 - Base.power_by_squaring(Float64(beta2), t)))
        lr_bc1 = Float32(Float64(lr) / (1 - Base.power_by_squaring(Float64(beta1), t)))
        g = g * grad_scale
        m = fma(beta1, m, (1 - beta1) * g)
        v = fma(beta2, v, (1 - beta2) * (g * g))
        d = fma(sqrt(v), inv_sqrt_bc2, eps)
        u = -fma(lr_bc1, m / d, lr * weight_decay * p)
        return p + u, m, v
    end

    @testset "a step is AdamW, bit for bit" begin
        hyper = (lr = 3.0f-3, beta1 = 0.9f0, beta2 = 0.99f0, eps = 1.0f-6, weight_decay = 0.1f0)
        for variant in (:auto, :reference, :portable)
            params, _ = example()
            plan = Lowbit.Plan(
                "adamw32", named(params); context = Lowbit.Context(variant = variant),
            )
            state = Lowbit.State(plan)
            expected = copy.(params)
            m, v = zero.(params), zero.(params)
            for t in 1:5
                _, grads = example(seed = t)
                @test Lowbit.step!(plan, params, grads, state; step = t, hyper...) === params
                for i in eachindex(expected), j in eachindex(expected[i])
                    expected[i][j], m[i][j], v[i][j] =
                        adamw(expected[i][j], grads[i][j], m[i][j], v[i][j], t; hyper...)
                end
            end
            @test bits.(params) == bits.(expected)
            @test bits(state["weight/m/value"]) == bits(m[1])
            @test bits(state["bias/v/value"]) == bits(v[2])
        end
    end

    @testset "options of a step" begin
        params, grads = example()
        plain, plain_state = stepped()
        @test plain != params
        @test stepped(skip = true)[1] == params
        @test stepped(lr = 0)[1] == params
        @test stepped(weight_decay = 0)[1] != plain

        # Gradients scaled by a power of two and back have the same bits.
        plan = Lowbit.Plan("adamw4", named(params))
        state = Lowbit.State(plan)
        scaled = [g .* 1024 for g in grads]
        Lowbit.step!(plan, params, scaled, state; step = 1, grad_scale = 1 / 1024)
        @test params == plain && state == plain_state

        # Updates instead of parameters.
        params, grads = example()
        updates, state = zero.(params), Lowbit.State(plan)
        Lowbit.step!(plan, params, grads, state; step = 1, updates = updates)
        @test params == example()[1] && state == plain_state
        @test params .+ updates == plain

        # A NaN leaves its tensor as it was.
        params, grads = example()
        grads[1][5] = NaN
        skipped, state = zeros(Int64, 2), Lowbit.State(plan)
        Lowbit.step!(plan, params, grads, state; step = 1, skipped = skipped)
        @test params[1] == example()[1][1] && params[2] == plain[2]
        @test skipped == [0, 1]
        Lowbit.step!(plan, params, grads, state; step = 1, nonfinite = :skip_step)
        @test params[2] == plain[2]
        @test_throws Lowbit.Error Lowbit.step!(
            plan, params, grads, state; step = 1, nonfinite = :skip_block,
        )
        @test_throws ArgumentError Lowbit.step!(
            plan, params, grads, state; step = 1, nonfinite = :stop,
        )
    end

    @testset "what does not fit is refused" begin
        params, grads = example()
        plan = Lowbit.Plan("adamw4", named(params))
        state = Lowbit.State(plan)
        step(params, grads; options...) =
            Lowbit.step!(plan, params, grads, state; step = 1, options...)

        @test_throws DimensionMismatch step(params, grads[1:1])
        @test_throws DimensionMismatch step(params, [permutedims(grads[1]), grads[2]])
        @test_throws DimensionMismatch step(params, grads; skipped = Int64[])
        error = caught(() -> step(params, [grads[1], Float64.(grads[2])]))
        @test error isa ArgumentError && occursin("grads[2] (bias)", error.msg)
        strided = view(zeros(Float32, 14), 1:2:14)
        @test_throws ArgumentError step([params[1], strided], grads)

        error = caught(() -> step(params, [params[1], grads[2]]))
        @test error isa Lowbit.Error && error.code == Lowbit.LOWBIT_STATUS_OVERLAP
        @test occursin("params[0] (weight)", error.text)
        error = caught(() -> step(params, grads; beta1 = 1))
        @test error isa Lowbit.Error && occursin("beta1", error.text)
        @test_throws Lowbit.Error Lowbit.step!(plan, params, grads, state; step = 0)
        foreign = Lowbit.State(Lowbit.Plan("adamw32", named(params)))
        @test_throws Lowbit.Error Lowbit.step!(plan, params, grads, foreign; step = 1)
        @test params == example()[1] && all(iszero, Iterators.flatten(values(state)))
    end

    @testset "contiguous views and reshapes are arrays like any other" begin
        params, grads = example()
        plan = Lowbit.Plan("adamw4", named(params))
        plain, state = copy.(params), Lowbit.State(plan)
        Lowbit.step!(plan, plain, grads, state; step = 1)
        flat = vcat(vec(params[1]), params[2])
        views = [reshape(view(flat, 1:9000), 100, 90), view(flat, 9001:9007)]
        Lowbit.step!(plan, views, grads, Lowbit.State(plan); step = 1)
        @test views == plain
    end

    @testset "bf16" begin
        array = Lowbit.BF16(Float32[1, -2.5, 1 + 2^-8, 1 + 3 * 2^-8, Inf, NaN])
        @test array[1:5] == Float32[1, -2.5, 1, 1 + 2^-6, Inf]
        @test isnan(array[6])
        @test array.bits[1] === 0x3f80
        @test Lowbit.BF16(array.bits).bits === array.bits

        params, grads = example()
        low = [Lowbit.BF16(p) for p in params]
        plan = Lowbit.Plan(
            "adamw4-block",
            [Lowbit.Tensor("a", low[1]; grad = Float32), Lowbit.Tensor("b", low[2])],
        )
        before = copy(low[1].bits)
        step(grads) = Lowbit.step!(plan, low, grads, Lowbit.State(plan); step = 1)
        @test_throws ArgumentError step(grads)
        step([grads[1], Lowbit.BF16(grads[2])])
        @test low[1].bits != before
    end

    @testset "f16" begin
        params, grads = example()
        half = [Float16.(p) for p in params]
        plan = Lowbit.Plan(
            "adamw4-block",
            [Lowbit.Tensor("a", half[1]; grad = Float32), Lowbit.Tensor("b", half[2])],
        )
        before = copy(half[2])
        step(grads) = Lowbit.step!(plan, half, grads, Lowbit.State(plan); step = 1)
        error = caught(() -> step(grads))
        @test error isa ArgumentError && occursin("the plan has Float16", error.msg)
        step([grads[1], Float16.(grads[2])])
        @test half[2] != before && all(isfinite, half[2])
    end

    @testset "weights" begin
        # Sixteen steps of 2^-12 from 1: a bf16 takes none of them, their sum it does.
        one_step = (lr = 2.0f0^-12, beta1 = 0, weight_decay = 0)
        grads = [ones(Float32, 8)]
        for (form, part, type) in [
            (:plain, "", Nothing),
            (:master, "master", Float32),
            (:remainder16, "remainder", UInt16),
            (:correction8, "correction", Int8),
        ]
            params = [Lowbit.BF16(ones(8))]
            tensor = Lowbit.Tensor("w", params[1]; grad = Float32, weights = form)
            plan = Lowbit.Plan("sgdm32", [tensor])
            state = Lowbit.State(plan)
            for t in 1:16
                Lowbit.step!(plan, params, grads, state; step = t, one_step...)
            end
            @test all(==(form == :plain ? 1 : 1 - 2.0f0^-8), params[1])
            form == :plain || @test eltype(state["w/weights/$part"]) == type
            form == :plain && @test length(state) == 1
        end
        low = (w = Lowbit.BF16(ones(8)), b = ones(Float32, 3))
        opt = Lowbit.setup("sgdm32", low; weights = :master)
        @test haskey(opt.state, "w/weights/master") && !haskey(opt.state, "b/weights/master")
        @test_throws ArgumentError Lowbit.Tensor("w", Float32, (3,); weights = :masters)
        tensor = Lowbit.Tensor("w", Float32, (3,); weights = :master)
        error = caught(() -> Lowbit.Plan("sgdm32", [tensor]))
        @test error isa Lowbit.Error && error.name == "UNSUPPORTED"
    end

    @testset "groups" begin
        params, grads = example()
        tensors = [Lowbit.Tensor("weight", params[1]), Lowbit.Tensor("bias", params[2]; group = 2)]
        plan = Lowbit.Plan("lion4", tensors)
        @test plan.group_count == 2
        groups = [(lr = 0.25,), (lr = 0.125, weight_decay = 0)]
        step(; options...) =
            Lowbit.step!(plan, params, grads, Lowbit.State(plan); step = 1, options...)
        error = caught(step)
        @test error isa Lowbit.Error && occursin("2 groups", error.text)
        @test_throws DimensionMismatch step(groups = groups[1:1])
        @test_throws ArgumentError step(groups = [(beta = 1,), (lr = 1,)])
        @test params == example()[1]
        step(beta1 = 0.8, groups = groups)
        for i in 1:2
            alone = [example()[1][i]]
            single = Lowbit.Plan("lion4", ["w" => alone[1]])
            state = Lowbit.State(single)
            Lowbit.step!(single, alone, grads[i:i], state; step = 1, beta1 = 0.8, groups[i]...)
            @test alone[1] == params[i]
        end
        tensor = Lowbit.Tensor("w", Float32, (3,); group = 0)
        @test_throws Lowbit.Error Lowbit.Plan("lion4", [tensor])
    end

    @testset "stages" begin
        for (spec, reduces) in ["adamw4" => [:max], "adafactor" => [:max, :sum, :max, :sum]]
            params, grads = example()
            whole, parts = copy.(params), copy.(params)
            plan = Lowbit.Plan(spec, named(params))
            state, other = Lowbit.State(plan), Lowbit.State(plan)
            Lowbit.step!(plan, whole, grads, state; step = 1)
            @test [stage.reduce for stage in plan.stages] == reduces
            for stage in eachindex(plan.stages)
                @test Lowbit.collect!(plan, stage, parts, grads, other; step = 1) === other
                values = Lowbit.statistics(plan, other, stage)
                @test eltype(values) == plan.stages[stage].type
                @test length(values) == plan.stages[stage].count && any(!iszero, values)
            end
            @test parts == params
            @test Lowbit.apply!(plan, parts, grads, other; step = 1) === parts
            @test parts == whole && other == state
            last = length(reduces) + 1
            error = caught(() -> Lowbit.collect!(plan, last, parts, grads, other; step = 1))
            @test error isa Lowbit.Error && occursin("collecting stages", error.text)
        end
    end

    @testset "shards" begin
        # Julia's last axis is the library's first: its slices lie together in memory.
        combine = (max = max, sum = +)
        for spec in ["adamw4", "factor4", "adafactor"]
            params, grads = randn(Float32, 256, 40), randn(Float32, 256, 40)
            whole = copy(params)
            plan = Lowbit.Plan(spec, ["w" => whole])
            state = Lowbit.State(plan)
            columns = [1:25, 26:25, 26:40]
            parts, slices = [params[:, c] for c in columns], [grads[:, c] for c in columns]
            plans = map(parts, columns) do part, c
                at = (1, first(c))
                Lowbit.Plan(spec, [Lowbit.Tensor("w", part; whole = (256, 40), first = at)])
            end
            states = Lowbit.State.(plans)
            for step in 1:3
                Lowbit.step!(plan, [whole], [grads], state; step = step)
                for (stage, info) in enumerate(plan.stages)
                    for (p, part, grad, s) in zip(plans, parts, slices, states)
                        Lowbit.collect!(p, stage, [part], [grad], s; step = step)
                    end
                    values = [Lowbit.statistics(p, s, stage) for (p, s) in zip(plans, states)]
                    reduced = reduce((a, b) -> combine[info.reduce].(a, b), values)
                    foreach(v -> v .= reduced, values)
                end
                for (p, part, grad, s) in zip(plans, parts, slices, states)
                    Lowbit.apply!(p, [part], [grad], s; step = step)
                end
                @test hcat(parts...) == whole
            end
        end
        tensor = Lowbit.Tensor("w", Float32, (64, 99); whole = (64, 300))
        error = caught(() -> Lowbit.Plan("adamw4", [tensor]))
        @test error isa Lowbit.Error && occursin("98 and 100", error.text)
        @test_throws DimensionMismatch Lowbit.Tensor("w", Float32, (3,); whole = (3, 3))
    end

    @testset "shards of processes" begin
        @test passes("shards.jl")
    end

    @testset "compress and decompress" begin
        params, _ = example()
        plan = Lowbit.Plan("adamw4", named(params))
        state = Lowbit.State(plan)
        Lowbit.compress!(plan, "m", params, state)
        values = Lowbit.decompress(plan, "m", state)
        @test size.(values) == size.(params)
        @test values[2] == params[2]
        @test maximum(abs, values[1] - params[1]) < 0.25 * maximum(abs, params[1])
        @test all(iszero, state["weight/v/codes"])
        error = caught(() -> Lowbit.compress!(plan, "x", params, state))
        @test error isa Lowbit.Error && occursin("\"x\"", error.text)
        @test_throws DimensionMismatch Lowbit.decompress!(plan, "m", state, params[1:1])

        free = Lowbit.Plan(
            """{"optimizer": "none", "threshold": 0,
                "x": {"bits": 4, "normalization": "block", "block": 64, "mapping": "de"}}""",
            named(params),
        )
        x = Lowbit.State(free)
        Lowbit.compress!(free, "x", params, x)
        @test eltype(x["bias/x/codes"]) == UInt8
    end

    @testset "checkpoints" begin
        mktempdir() do folder
            path = joinpath(folder, "state.safetensors")
            params, grads = example()
            plan = Lowbit.Plan("adamw4", named(params))
            state, other = Lowbit.State(plan), Lowbit.State(plan)
            Lowbit.step!(plan, params, grads, state; step = 1)
            Lowbit.save(plan, path, state; step = 1)
            @test Lowbit.load!(plan, path, other) == 1
            @test other == state

            # Files of shards, and the last two.
            merged, index = joinpath(folder, "merged"), joinpath(folder, "index.json")
            Lowbit.reshard(plan, path, merged)
            Lowbit.write_index(index, [merged])
            loaded = Lowbit.State(plan)
            @test Lowbit.load!(plan, index, loaded; subset = true) == 1
            @test loaded == state
            Lowbit.merge_checkpoint(index, joinpath(folder, "again"))
            @test read(joinpath(folder, "again")) == read(path)
            @test occursin("\"step\":1", Lowbit.checkpoint_json(index))
            for step in 1:3
                Lowbit.save(plan, joinpath(folder, "run-{step}"), state; step = step, keep = 2)
            end
            @test filter(startswith("run"), readdir(folder)) == ["run-2", "run-3"]

            # What is refused changes nothing.
            bytes = read(path)
            bytes[end-10] ⊻= 0xff
            write(path, bytes)
            untouched = Lowbit.State(plan)
            error = caught(() -> Lowbit.load!(plan, path, untouched))
            @test error isa Lowbit.Error && error.name == "FORMAT_CORRUPT"
            @test untouched == Lowbit.State(plan)
            error = caught(() -> Lowbit.load!(plan, joinpath(folder, "none"), untouched))
            @test error isa Lowbit.Error && error.code == Lowbit.LOWBIT_STATUS_IO
        end
    end

    @testset "the optimizer of a nest" begin
        rng = MersenneTwister(3)
        nest() = (
            layers = [(w = randn(rng, Float32, 80, 70), f = tanh), (w = randn(rng, Float32, 5),)],
            named = Dict(:b => randn(rng, Float32, 3), :a => (randn(rng, Float32, 2), 1.5)),
            size = 7,
        )
        params, grads = nest(), nest()
        arrays(n) = [n.layers[1].w, n.layers[2].w, n.named[:a][1], n.named[:b]]
        names = ["layers.1.w", "layers.2.w", "named.a.1", "named.b"]

        # As the pieces give it.
        expected = deepcopy(arrays(params))
        plan = Lowbit.Plan("adamw4", map(=>, names, expected))
        state = Lowbit.State(plan)
        for t in 1:3
            hyper = (lr = t / 100, beta1 = 0.8, weight_decay = 0.2, clip_factor = 0.5)
            Lowbit.step!(plan, expected, arrays(grads), state; step = t, hyper...)
        end

        opt = Lowbit.setup("adamw4", params; beta = (0.8, 0.999), lambda = 0.2)
        @test [tensor.name for tensor in opt.plan.tensors] == names
        first = params.layers[1].w
        for t in 1:3
            @test Lowbit.update!(opt, grads; eta = t / 100, clip_factor = 0.5) === opt
        end
        @test opt.step == 3
        @test params.layers[1].w === first
        @test arrays(params) == expected
        @test opt.state == state
        @test occursin("step 3", string(opt))

        # Gradients that are no dense Float32 arrays.
        wide = (
            layers = [
                (w = permutedims(Float64.(grads.layers[1].w))', f = nothing),
                (w = Base.Broadcast.broadcasted(+, grads.layers[2].w, 0),),
            ],
            named = grads.named,
        )
        hyper = (beta1 = 0.8, weight_decay = 0.2)
        Lowbit.step!(plan, expected, arrays(grads), state; step = 4, hyper...)
        Lowbit.update!(opt, wide)
        @test arrays(params) == expected

        # Refused steps are not counted.
        missing_one = merge(grads, (layers = [grads.layers[1], nothing],))
        error = caught(() -> Lowbit.update!(opt, missing_one))
        @test error isa ArgumentError && occursin("layers.2.w", error.msg)
        short = merge(grads, (layers = grads.layers[[2, 1]],))
        @test_throws DimensionMismatch Lowbit.update!(opt, short)
        @test opt.step == 4
        @test arrays(params) == expected

        mktempdir() do folder
            path = joinpath(folder, "state.safetensors")
            Lowbit.save(opt, path)
            copied = deepcopy(params)
            again = Lowbit.load!(Lowbit.setup("adamw4", copied; beta = (0.8, 0.999)), path)
            @test again.step == 4
            again.lambda = 0.2
            Lowbit.update!(opt, grads)
            Lowbit.update!(again, grads)
            @test arrays(copied) == arrays(params)
        end

        # A copy trains on its own.
        other = deepcopy(opt)
        Lowbit.update!(other, grads)
        @test other.step == opt.step + 1 && other.state != opt.state
        @test other.params != opt.params

        # The same array twice is one parameter with two gradients: refused.
        shared = randn(rng, Float32, 4)
        tied = Lowbit.setup("adamw4", (a = shared, b = shared))
        error = caught(() -> Lowbit.update!(tied, (a = zeros(4), b = zeros(4))))
        @test error isa Lowbit.Error && error.name == "OVERLAP"
        @test_throws ArgumentError Lowbit.setup("adamw4", (a = Ref(shared),))

        low = (w = Lowbit.BF16(randn(rng, Float32, 6)),)
        mixed = Lowbit.setup("adamw4", low; grad = Float32)
        Lowbit.update!(mixed, (w = ones(6),))
        pure = Lowbit.setup("adamw4", low)
        Lowbit.update!(pure, (w = ones(Float32, 6),))
        @test pure.step == 1
    end

    @testset "subnormals" begin
        plan = Lowbit.Plan("adamw32", ["w" => zeros(Float32, 1000)])
        function run()
            param = [fill(1.0f-40, 1000)]
            grad = [fill(1.0f-21, 1000)]
            state = Lowbit.State(plan)
            Lowbit.step!(plan, param, grad, state; step = 1, lr = 1.0f-38)
            return bits(param[1]), bits(state["w/v/value"])
        end
        expected = run()
        @test all(0 .< reinterpret(Float32, expected[2]) .< floatmin(Float32))
        @test set_zero_subnormals(true)
        got = run()
        # The setting of this thread is as it was.
        kept = get_zero_subnormals()
        set_zero_subnormals(false)
        @test got == expected
        @test kept
    end

    @testset "handles" begin
        context = Lowbit.Context(threads = 2)
        params, grads = example()
        plan = Lowbit.Plan("adamw4", named(params); context = context)
        close(context)
        close(context)
        @test !isopen(context)
        error = caught(() -> Lowbit.Plan("adamw4", named(params); context = context))
        @test error isa ArgumentError && occursin("closed", error.msg)
        state = Lowbit.State(plan)
        Lowbit.step!(plan, params, grads, state; step = 1)
        close(plan)
        close(plan)
        @test_throws ArgumentError Lowbit.step!(plan, params, grads, state; step = 2)
        @test_throws ArgumentError Lowbit.report(plan)
        @test occursin("closed", string(plan))
        @test_throws ArgumentError Lowbit.Context(variant = :fast)
        @test_throws Lowbit.Error Lowbit.Context(threads = -1)
    end

    @testset "finalizers" begin
        plan = Lowbit.Plan("adamw4", ["w" => zeros(Float32, 5)])
        finalize(plan)
        @test !isopen(plan)
        if Sys.islinux()
            # A context that was freed has joined its threads.
            threads() = length(readdir("/proc/self/task"))
            contexts(count) = [Lowbit.Context(threads = 3) for _ in 1:count]
            before = threads()
            (() -> @test length(contexts(20)) == 20 && threads() == before + 40)()
            GC.gc()
            GC.gc()
            @test threads() <= before
        end
    end

    @testset "Julia's arrays on no known device" begin
        error = caught(() -> Lowbit.setup("adamw4", (w = Elsewhere(zeros(Float32, 3)),)))
        @test error isa ArgumentError && occursin("no context", error.msg)
        strided = view(zeros(Float32, 8), 1:2:8)
        error = caught(() -> Lowbit.setup("adamw4", (w = strided,)))
        @test error isa ArgumentError && occursin("not contiguous", error.msg)
    end

    @testset "threads and garbage collection" begin
        @test passes("threads.jl"; JULIA_NUM_THREADS = "2")
    end

    @testset "a panic becomes an error" begin
        library = get(ENV, "LOWBIT_TEST_LIBRARY", "")
        @test isfile(library)
        @test isfile(library) && passes("panic.jl"; LOWBIT_LIBRARY = library)
    end
end
