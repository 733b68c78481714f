# Goes on from the checkpoint of a trainer in another language: five steps, to that trainer's bits. Or
# leaves such a checkpoint.
#
#     julia --project=bindings/julia bindings/julia/test/handover.jl FOLDER
#     julia --project=bindings/julia bindings/julia/test/handover.jl --write FOLDER
#
# The folder is described in tests/common/README.md.

using Lowbit

include("common.jl")

"Cuts a file of f32 into arrays of the tensors' sizes."
function read_arrays(path, tensors)
    arrays = open(path) do file
        map(tensor -> read!(file, Array{Float32}(undef, tensor.size)), tensors)
    end
    @assert filesize(path) == sum(sizeof, arrays) "$path has another size than the tensors"
    return arrays
end

const STEPS = 5

"What hyper.txt says, for `step!`."
function options(hyper)
    lr, beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip = hyper
    return (
        lr = lr,
        beta1 = beta1,
        beta2 = beta2,
        eps = eps,
        weight_decay = weight_decay,
        grad_scale = grad_scale,
        clip_factor = clip_factor,
        skip = skip != 0,
    )
end

function continued(folder)
    file(name) = joinpath(folder, name)
    tensors = map(readlines(file("tensors.txt"))) do line
        name, extents = Iterators.peel(split(line))
        Lowbit.Tensor(name, Float32, Tuple(reverse(parse.(Int, collect(extents)))))
    end
    hyper = parse.(Float32, split(read(file("hyper.txt"), String)))

    plan = Lowbit.Plan(read(file("spec.json"), String), tensors)
    state = Lowbit.State(plan)
    params = read_arrays(file("params.f32"), tensors)
    step = Lowbit.load!(plan, file("state.safetensors"), state)
    for i in 1:STEPS
        grads = read_arrays(file("grad$i.f32"), tensors)
        Lowbit.step!(plan, params, grads, state; step = step + i, options(hyper)...)
    end

    got, expected = fingerprint(params, state), strip(read(file("expected.txt"), String))
    println(got)
    got == expected && return 0
    println(stderr, "expected $expected")
    return 1
end

const SPEC = """
{"optimizer": "adamw", "m": {"bits": 4, "normalization": "block", "mapping": "de"},
 "v": {"bits": 4, "normalization": "rank1", "mapping": "linear"}}
"""
# As C has them: a Julia array's axes are in the reverse order.
const SHAPES = ["wte" => (300, 257), "h.0.ln" => (64,), "h.0.mlp" => (100, 128)]
const HYPER = Float32[3e-4, 0.95, 0.98, 1e-7, 0.1, 0.5, 0.25, 0]

"Three steps, a checkpoint, and what another language needs to take the next five."
function leave(folder)
    mkpath(folder)
    file(name) = joinpath(folder, name)
    leave_arrays(name, arrays) = open(io -> foreach(a -> write(io, a), arrays), file(name), "w")
    tensors = [Lowbit.Tensor(name, Float32, reverse(shape)) for (name, shape) in SHAPES]
    plan = Lowbit.Plan(SPEC, tensors)
    state = Lowbit.State(plan)
    params = [numbers(param_number, i - 1, t.size) for (i, t) in enumerate(tensors)]
    for step in 1:3+STEPS
        grads = [numbers(grad_number, 1000 * step + i - 1, t.size) for (i, t) in enumerate(tensors)]
        step > 3 && leave_arrays("grad$(step - 3).f32", grads)
        Lowbit.step!(plan, params, grads, state; step = step, options(HYPER)...)
        if step == 3
            Lowbit.save(plan, file("state.safetensors"), state; step = step)
            leave_arrays("params.f32", params)
        end
    end
    write(file("spec.json"), SPEC)
    write(file("tensors.txt"), join(join((name, shape...), " ") * "\n" for (name, shape) in SHAPES))
    write(file("hyper.txt"), join(string.(Float64.(HYPER)), " ") * "\n")
    write(file("expected.txt"), fingerprint(params, state) * "\n")
    return 0
end

function main(arguments)
    length(arguments) == 1 && return continued(arguments[1])
    length(arguments) == 2 && arguments[1] == "--write" && return leave(arguments[2])
    error("usage: handover.jl [--write] FOLDER")
end

exit(main(ARGS))
