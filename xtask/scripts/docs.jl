# Writes the docstrings of Lowbit.jl as one page: docs.jl OUT. Standard library only.

using Lowbit
using Markdown

function main(path)
    entries = Tuple{String,String}[]
    for (binding, documents) in Base.Docs.meta(Lowbit), signature in documents.order
        push!(entries, (string(binding.var), join(documents.docs[signature].text)))
    end
    isempty(entries) && error("Lowbit has no docstrings")
    sort!(entries; by = first)
    open(path, "w") do io
        println(io, "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Lowbit.jl</title>")
        println(io, "<body style=\"max-width: 60rem; margin: 2rem auto; font: 1rem/1.5 sans-serif\">")
        println(io, "<h1>Lowbit.jl</h1>")
        for (name, text) in entries
            println(io, "<h2><code>", name, "</code></h2>\n", Markdown.html(Markdown.parse(text)))
        end
        println(io, "</body></html>")
    end
end

main(ARGS[1])
