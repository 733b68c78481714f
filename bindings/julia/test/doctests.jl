# Runs the examples of the docstrings and of the README. The format is Documenter's (`jldoctest`), which
# need not be installed.

using Lowbit
using Test

include("readme.jl")

"The docstrings of Lowbit: pairs of a name and its text."
function docstrings()
    found = Pair{String,String}[]
    for (binding, multi) in Base.Docs.meta(Lowbit), string in values(multi.docs)
        push!(found, String(binding.var) => join(string.text))
    end
    return sort!(found)
end

"The inputs of a block with prompts, each with the output that is expected."
function prompts(block)
    inputs, outputs = String[], String[]
    for line in split(chomp(block), '\n')
        if startswith(line, "julia> ")
            push!(inputs, line[8:end])
            push!(outputs, "")
        elseif startswith(line, " "^7) && isempty(outputs[end])
            inputs[end] *= "\n" * line[8:end]
        else
            outputs[end] *= line * "\n"
        end
    end
    return collect(zip(inputs, map(strip, outputs)))
end

"What the prompt prints for an input: the program's own output, then the value."
function evaluate(into, input)
    value = nothing
    printed = mktemp() do path, file
        redirect_stdout(file) do
            value = include_string(into, input)
            flush(stdout)
        end
        read(path, String)
    end
    (value === nothing || endswith(rstrip(input), ';')) && return strip(printed)
    shown = sprint(show, MIME("text/plain"), value; context = :limit => true)
    return strip(printed * shown)
end

@testset "doctests" begin
    count = 0
    for (name, text) in docstrings(), block in blocks(text, "jldoctest")
        into = Module(:Doctest)
        Core.eval(into, :(using Lowbit))
        @testset "$name" begin
            for (input, expected) in prompts(block)
                @test evaluate(into, input) == expected
            end
        end
        count += 1
    end
    println(count, " examples in docstrings")
    @test count > 10
end

@testset "references between docstrings" begin
    names = Set(first.(docstrings()))
    for (name, text) in docstrings(), m in eachmatch(r"\[`([^`]*)`\]\(@ref\)", text)
        @test m.captures[1] in names
    end
end

@testset "the README" begin
    into, count = run_readme()
    @test count == 4
    @test Core.eval(into, :(step == 1 && isfile(path)))
end
