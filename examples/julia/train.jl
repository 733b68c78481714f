# Trains the language model of model.jl with 32-bit and with 4-bit AdamW from equal starts on equal
# batches, and compares them.
#
#     julia --project=bindings/julia examples/julia/train.jl [--name value]...
#
# --specs    adamw32,adamw4,adamw4-block: presets of lowbit; the first is what others are compared with
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
        haskey(found, key) || error("there is no option $name; there are $(join(keys(found), ", "))")
        found[key] = value
    end
    return found
end

"The learning rate: 50 steps of warm-up, then a cosine down to a tenth."
function rate(step, steps)
    step <= 50 && return 3.0f-3 * step / 50
    return 3.0f-3 * (0.1f0 + 0.9f0 * (1 + cospi(Float32((step - 50) / max(1, steps - 50)))) / 2)
end

"One run: the validation losses on the way, the bytes of state, and milliseconds per step."
function train(spec, seed, text, validation_set, steps, batch)
    rng = MersenneTwister(seed)
    params = init(rng; context = CONTEXT)
    opt = Lowbit.setup(spec, params; lambda = 0.05)
    curve, recent = Tuple{Int,Float64}[], Float64[]
    gradient_time, step_time = 0.0, 0.0
    for step in 1:steps
        gradient_time += @elapsed value, gradients = loss_and_gradients(params, draw(rng, text, CONTEXT, batch)...)
        step_time += @elapsed Lowbit.update!(opt, gradients; eta = rate(step, steps))
        push!(recent, value)
        if step == 1 || step % max(1, steps ÷ 20) == 0
            push!(curve, (step, loss(params, validation_set...)))
            @printf("%-13s seed %d  step %5d/%d  training %.4f  validation %.4f\n", spec, seed, step, steps, mean(recent), curve[end][2])
            flush(stdout)
            empty!(recent)
        end
    end
    return (
        curve = curve,
        state_bytes = opt.plan.state_bytes,
        parameters = sum(length, values(params)),
        gradients = 1e3 * gradient_time / steps,
        update = 1e3 * step_time / steps,
    )
end

function main(arguments)
    given = options(arguments)
    number(name) = parse(Int, given[name])
    specs, steps = split(given["specs"], ','), number("steps")
    text, validation = load_text(given["data"])
    BLAS.set_num_threads(1)
    rng = MersenneTwister(0)
    validation_set = draw(rng, validation, CONTEXT, 4096)
    difference = check_gradients(rng, init(rng; context = 4, embedding = 8, width = 32), draw(rng, text, 4, 16)...)
    @printf("gradients agree with differences to %.1e\n", difference)
    difference < 1e-5 || error("the gradients are wrong")

    seeds = 1:number("seeds")
    runs = Dict((spec, seed) => train(spec, seed, text, validation_set, steps, number("batch")) for seed in seeds for spec in specs)

    final(spec, seed) = runs[spec, seed].curve[end][2]
    println("\n$(length(text)) bytes of text, $(runs[specs[1], 1].parameters) parameters, $steps steps\n")
    println("| optimizer | validation loss, nats per byte | to $(specs[1]), mean and range | state bytes | bytes per parameter | gradients, ms | update, ms |")
    println("|---|--:|--:|--:|--:|--:|--:|")
    for spec in specs
        losses = [final(spec, seed) for seed in seeds]
        gaps = [final(spec, seed) - final(specs[1], seed) for seed in seeds]
        run = runs[spec, 1]
        each(field) = median([getfield(runs[spec, seed], field) for seed in seeds])
        @printf(
            "| %s | %s | %+.4f (%+.4f to %+.4f) | %d | %.3f | %.1f | %.2f |\n",
            spec, join((@sprintf("%.4f", x) for x in losses), ", "), mean(gaps), extrema(gaps)...,
            run.state_bytes, run.state_bytes / run.parameters, each(:gradients), each(:update),
        )
        all(isfinite, losses) || error("$spec diverged")
        all(losses .< 0.8 * runs[spec, 1].curve[1][2]) || error("$spec did not learn")
    end

    mkpath(given["out"])
    path = joinpath(given["out"], "loss.svg")
    # From where the curves can be told apart.
    average(spec, i) = (runs[spec, 1].curve[i][1], mean(runs[spec, seed].curve[i][2] for seed in seeds))
    series = [String(spec) => [average(spec, i) for i in 2:length(runs[spec, 1].curve)] for spec in specs]
    write_svg(path, "A language model of bytes, in Julia", "step", "validation loss, nats per byte", series)
    println("\nthe curves are in ", path)
end

main(ARGS)
