# Goes on from the checkpoint of the C++ example: five steps, to the C++ trainer's bits.
#
#     julia --project=bindings/julia bindings/julia/test/handover.jl FOLDER
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

function main(folder)
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
    for i in 1:5
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

length(ARGS) == 1 || error("usage: handover.jl FOLDER")
exit(main(ARGS[1]))
