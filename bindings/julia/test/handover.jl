# Goes on from a trainer of another language: five steps, to that trainer's bits. Or leaves a folder that
# others go on from.
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

function continued(folder)
    file(name) = joinpath(folder, name)
    tensors = map(readlines(file("tensors.txt"))) do line
        name, extents = Iterators.peel(split(line))
        Lowbit.Tensor(name, Float32, Tuple(reverse(parse.(Int, collect(extents)))))
    end
    hyper = parse.(Float32, split(read(file("hyper.txt"), String)))
    lr, beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip = hyper

    plan = Lowbit.Plan(read(file("spec.json"), String), tensors)
    state = Lowbit.State(plan)
    params = read_arrays(file("params.f32"), tensors)
    step = Lowbit.load!(plan, file("state.safetensors"), state)
    for i in 1:STEPS
        grads = read_arrays(file("grad$i.f32"), tensors)
        Lowbit.step!(
            plan, params, grads, state;
            step = step + i,
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

    got, expected = fingerprint(params, state), strip(read(file("expected.txt"), String))
    println(got)
    got == expected && return 0
    println(stderr, "expected $expected")
    return 1
end

"Three steps, a checkpoint, and what another language needs to take the next five."
function leave(folder)
    mkpath(folder)
    file(name) = joinpath(folder, name)
    names, sizes = ["wte", "h.0.ln", "h.0.mlp"], [(257, 300), (64,), (128, 100)]
    params = [numbers(param_number, i - 1, size) for (i, size) in enumerate(sizes)]
    plan = Lowbit.Plan("adamw4", map(=>, names, params))
    state = Lowbit.State(plan)
    hyper = (lr = 3.0f-4, beta1 = 0.95f0, beta2 = 0.98f0, eps = 1.0f-7, weight_decay = 0.1f0)
    for t in 1:3+STEPS
        grads = [numbers(grad_number, 1000t + i - 1, size) for (i, size) in enumerate(sizes)]
        t > 3 && open(io -> foreach(grad -> write(io, grad), grads), file("grad$(t - 3).f32"), "w")
        Lowbit.step!(plan, params, grads, state; step = t, hyper...)
        if t == 3
            Lowbit.save(plan, file("state.safetensors"), state; step = t)
            open(io -> foreach(param -> write(io, param), params), file("params.f32"), "w")
        end
    end
    write(file("spec.json"), Lowbit.json(Lowbit.Spec("adamw4")))
    lines = map((name, size) -> join([name; reverse([size...])], ' '), names, sizes)
    write(file("tensors.txt"), join(lines, '\n'), '\n')
    write(file("hyper.txt"), join(Float32[values(hyper)..., 1, 1, 0], ' '), '\n')
    write(file("expected.txt"), fingerprint(params, state), '\n')
    return 0
end

function main(arguments)
    length(arguments) == 1 && return continued(arguments[1])
    length(arguments) == 2 && arguments[1] == "--write" && return leave(arguments[2])
    error("usage: handover.jl [--write] FOLDER")
end

exit(main(ARGS))
