# Text to train on: the sources of Python's documentation, which `cargo xtask data text` unpacks, or
# any other folder of .txt files.

using Random
using SHA

"""
    load_text(folder) -> (train, validation)

The bytes of all documents, one after the other. One document in 23, chosen by a hash of its name,
is for validation; the experiments in examples/experiments choose the same.
"""
function load_text(folder)
    train, validation, documents = UInt8[], UInt8[], String[]
    for (root, _, files) in walkdir(folder), file in files
        endswith(file, ".txt") && push!(documents, joinpath(root, file))
    end
    isempty(documents) && error("$folder has no .txt files: run `cargo xtask data text`")
    for path in sort(documents)
        name = replace(relpath(path, folder), '\\' => '/')
        append!(sha256(name)[1] % 23 == 0 ? validation : train, read(path))
    end
    return train, validation
end

"""
    draw(rng, bytes, context, count) -> (inputs, targets)

Windows at random places: `context` bytes in each column of `inputs`, and the byte that follows in
`targets`, both counted from 1.
"""
function draw(rng, bytes, context, count)
    starts = rand(rng, 1:length(bytes)-context, count)
    inputs = [Int(bytes[start+i-1]) + 1 for i in 1:context, start in starts]
    return inputs, [Int(bytes[start+context]) + 1 for start in starts]
end
