# A language model of bytes: embeddings of the last bytes side by side, then two layers with ReLU,
# the second with a residual connection (Bengio, Ducharme, Vincent, Jauvin 2003, with today's parts).
# Its gradients are written by hand.

using LinearAlgebra
using Random

const BYTES = 256

"Parameters with He's initial values; each column of an activation is an example."
function init(rng; context = 16, embedding = 24, width = 256)
    normal(rows, columns, gain) =
        randn(rng, Float32, rows, columns) .* Float32(sqrt(gain / columns))
    return (
        embed = randn(rng, Float32, embedding, BYTES),
        w1 = normal(width, context * embedding, 2),
        b1 = zeros(Float32, width),
        w2 = normal(width, width, 2),
        b2 = zeros(Float32, width),
        w3 = normal(BYTES, width, 1),
        b3 = zeros(Float32, BYTES),
    )
end

"Everything that the gradients need: inputs of the layers, pre-activations, logits."
function forward(p, inputs)
    x = reshape(p.embed[:, inputs], :, size(inputs, 2))
    z1 = p.w1 * x .+ p.b1
    h1 = max.(z1, 0)
    z2 = p.w2 * h1 .+ p.b2
    h2 = h1 .+ max.(z2, 0)
    return (x = x, z1 = z1, h1 = h1, z2 = z2, h2 = h2, logits = p.w3 * h2 .+ p.b3)
end

"Mean cross entropy in nats, and the probabilities."
function cross_entropy(logits, targets)
    shifted = logits .- maximum(logits; dims = 1)
    exponentials = exp.(shifted)
    sums = sum(exponentials; dims = 1)
    losses = [log(sums[j]) - shifted[target, j] for (j, target) in enumerate(targets)]
    return sum(losses) / length(targets), exponentials ./ sums
end

loss(p, inputs, targets) = cross_entropy(forward(p, inputs).logits, targets)[1]

"The loss, and its gradients in a nest like the parameters."
function loss_and_gradients(p, inputs, targets)
    a = forward(p, inputs)
    value, d = cross_entropy(a.logits, targets)
    for (j, target) in enumerate(targets)
        d[target, j] -= 1
    end
    d ./= length(targets)
    dh2 = p.w3' * d
    dz2 = dh2 .* (a.z2 .> 0)
    dh1 = dh2 .+ p.w2' * dz2
    dz1 = dh1 .* (a.z1 .> 0)
    dx = reshape(p.w1' * dz1, size(p.embed, 1), :)
    dembed = zero(p.embed)
    for (column, byte) in enumerate(inputs), i in axes(dx, 1)
        dembed[i, byte] += dx[i, column]
    end
    rows(x) = vec(sum(x; dims = 2))
    gradients = (
        embed = dembed,
        w1 = dz1 * a.x',
        b1 = rows(dz1),
        w2 = dz2 * a.h1',
        b2 = rows(dz2),
        w3 = d * a.h2',
        b3 = rows(d),
    )
    return value, gradients
end

"""
    check_gradients(p, inputs, targets)

The largest relative difference, over the parameters' arrays, between the derivative in a random
direction by these gradients and by differences, in `Float64`.
"""
function check_gradients(rng, p, inputs, targets)
    p = map(array -> Float64.(array), p)
    _, gradients = loss_and_gradients(p, inputs, targets)
    differences = map(keys(p)) do key
        direction, h = randn(rng, size(p[key])), 1e-5
        moved(t) = loss(merge(p, NamedTuple{(key,)}((p[key] .+ t .* direction,))), inputs, targets)
        numeric = (moved(h) - moved(-h)) / 2h
        abs(numeric - dot(gradients[key], direction)) / abs(numeric)
    end
    return maximum(differences)
end
