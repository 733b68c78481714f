# Trains the language model of model.jl with 32-bit and with 4-bit AdamW from equal starts on equal
# batches, and compares them.
#
#     julia --project=bindings/julia examples/julia/train.jl [--name value]...
#
# --specs    adamw32,adamw4,adamw4-block: presets; the others are compared with the first
# --seeds    3: runs of each
# --steps    2000
# --batch    256
# --data     target/env/data-text/python-doc: a folder of .txt files
# --out      target/julia-example: where loss.svg goes
#
# Standard library alone. The library is found as bindings/julia/README.md says.

using Lowbit
using Printf
using Statistics

include("text.jl")
include("model.jl")
include("plot.jl")

const ROOT = joinpath(@__DIR__, "..", "..")
const CONTEXT = 16

function options(arguments)
    found = Dict(
        "specs" => "adamw32,adamw4,adamw4-block",
        "seeds" => "3",
        "steps" => "2000",
        "batch" => "256",
        "data" => joinpath(ROOT, "target", "env", "data-text", "python-doc"),
        "out" => joinpath(ROOT, "target", "julia-example"),
    )
    iseven(length(arguments)) || error("options come as --name value")
    for (name, value) in Iterators.partition(arguments, 2)
        key = replace(name, r"^--" => "")
        haskey(found, key) || error("no option $name; there are $(join(keys(found), ", "))")
        found[key] = value
    end
    return found
end

"The learning rate: 50 steps of warm-up, then a cosine down to a tenth."
function rate(step, steps)
    step <= 50 && return 3.0f-3 * step / 50
    return 3.0f-3 * (0.1f0 + 0.9f0 * (1 + cospi(Float32((step - 50) / max(1, steps - 50)))) / 2)
end

"One run: validation losses on the way, bytes of state, and milliseconds per step."
function train(spec, seed, text, validation_set, steps, batch)
    rng = MersenneTwister(seed)
    params = init(rng; context = CONTEXT)
    opt = Lowbit.setup(spec, params; lambda = 0.05)
    curve, recent = Tuple{Int,Float64}[], Float64[]
    gradient_time, update_time = 0.0, 0.0
    for step in 1:steps
        inputs, targets = draw(rng, text, CONTEXT, batch)
        gradient_time += @elapsed value, gradients = loss_and_gradients(params, inputs, targets)
        update_time += @elapsed Lowbit.update!(opt, gradients; eta = rate(step, steps))
        push!(recent, value)
        if step == 1 || step % max(1, steps ÷ 20) == 0
            push!(curve, (step, loss(params, validation_set...)))
            @printf("%-13s seed %d  step %5d/%d  ", spec, seed, step, steps)
            @printf("training %.4f  validation %.4f\n", mean(recent), curve[end][2])
            flush(stdout)
            empty!(recent)
        end
    end
    return (
        curve = curve,
        state_bytes = opt.plan.state_bytes,
        parameters = sum(length, values(params)),
        gradients = 1e3 * gradient_time / steps,
        update = 1e3 * update_time / steps,
    )
end

"Prints the table of `runs[spec]`, which are the runs of each seed. Fails if one did not learn."
function report(specs, runs)
    final(spec) = [run.curve[end][2] for run in runs[spec]]
    print("| optimizer | validation loss, nats per byte | to $(specs[1]), mean and range ")
    println("| state bytes | bytes per parameter | gradients, ms | update, ms |")
    println("|---|--:|--:|--:|--:|--:|--:|")
    for spec in specs
        losses, gaps, run = final(spec), final(spec) .- final(specs[1]), runs[spec][1]
        @printf("| %s | %s ", spec, join((@sprintf("%.4f", x) for x in losses), ", "))
        @printf("| %+.4f (%+.4f to %+.4f) ", mean(gaps), extrema(gaps)...)
        @printf("| %d | %.3f ", run.state_bytes, run.state_bytes / run.parameters)
        times(field) = median([getfield(run, field) for run in runs[spec]])
        @printf("| %.1f | %.2f |\n", times(:gradients), times(:update))
        # Not finite is not below either.
        all(losses .< 0.8 * run.curve[1][2]) || error("$spec did not learn")
    end
end

"Draws the means over the seeds, from where the curves can be told apart."
function draw_curves(path, specs, runs)
    series = map(specs) do spec
        curves = [run.curve for run in runs[spec]]
        average(i) = (curves[1][i][1], mean(curve[i][2] for curve in curves))
        spec => map(average, 2:length(curves[1]))
    end
    title = "A language model of bytes, in Julia"
    write_svg(path, title, "step", "validation loss, nats per byte", series)
end

function main(arguments)
    given = options(arguments)
    specs = map(String, split(given["specs"], ','))
    seeds, steps, batch = (parse(Int, given[name]) for name in ("seeds", "steps", "batch"))
    text, validation = load_text(given["data"])
    # The model is too small for more to help, and the library's threads want cores too.
    BLAS.set_num_threads(1)

    rng = MersenneTwister(0)
    validation_set = draw(rng, validation, CONTEXT, 4096)
    small = init(rng; context = 4, embedding = 8, width = 32)
    difference = check_gradients(rng, small, draw(rng, text, 4, 16)...)
    @printf("gradients agree with differences to %.1e\n", difference)
    difference < 1e-5 || error("the gradients are wrong")

    runs = Dict(spec => [] for spec in specs)
    for seed in 1:seeds, spec in specs
        push!(runs[spec], train(spec, seed, text, validation_set, steps, batch))
    end
    parameters = runs[specs[1]][1].parameters
    println("\n$(length(text)) bytes of text, $parameters parameters, $steps steps\n")
    report(specs, runs)
    mkpath(given["out"])
    path = joinpath(given["out"], "loss.svg")
    draw_curves(path, specs, runs)
    println("\nthe curves are in ", path)
end

main(ARGS)
