# Writes the reference of Lowbit.jl, all docstrings on one page of HTML, with the standard library.
#
#     julia --project=bindings/julia bindings/julia/docs/reference.jl FILE
#
# Fails on references that lead nowhere and on names of the interface without a docstring.

using Lowbit
using Markdown

# The names of `Lowbit.INTERFACE` in the order of the page.
const SECTIONS = [
    "Optimizers" => [:setup, :Optimizer, :update!, :rule, :save, :load!],
    "Pieces" => [:Spec, :json, :Tensor, :Plan, :report, :State, :Context, :default_context, :BF16],
    "Steps" => [:step!, :collect!, :apply!, :statistics, :default_stream],
    "Values of states" => [:compress!, :decompress!, :decompress],
    "Checkpoints" => [:reshard, :merge_checkpoint, :write_index, :checkpoint_json],
    "The library" => [:functional, :libpath, :set_library!, :Error],
]

"All docstrings of a name, one after the other."
function docstring(name)
    binding = Base.Docs.Binding(Lowbit, name)
    documented = get(Base.Docs.meta(Lowbit), binding, nothing)
    documented === nothing && error("$name has no docstring")
    texts = [join(documented.docs[signature].text) for signature in documented.order]
    return join(unique(texts), "\n\n---\n\n")
end

function main(path)
    names = Set(name for (_, section) in SECTIONS for name in section)
    names == Set(Lowbit.INTERFACE) || error("not the interface: $(symdiff(names, Lowbit.INTERFACE))")
    link(match) = begin
        name = match[3:first(findfirst("`]", match))-1]
        Symbol(name) in names || error("a reference to $name, which is not on the page")
        "[`$name`](#$name)"
    end
    html(name) =
        Markdown.html(Markdown.parse(replace(docstring(name), r"\[`[^`]*`\]\(@ref\)" => link)))
    open(path, "w") do io
        println(io, "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>Lowbit.jl</title>")
        println(io, "<body style=\"max-width: 60rem; margin: 2rem auto; font: 1rem/1.5 sans-serif\">")
        println(io, html(:Lowbit))
        for (title, section) in SECTIONS
            println(io, "<h1>", title, "</h1>")
            for name in section
                println(io, "<h2 id=\"", name, "\">Lowbit.", name, "</h2>")
                println(io, html(name))
            end
        end
        println(io, "</body></html>")
    end
    println(length(names), " names in ", path)
end

length(ARGS) == 1 || error("usage: reference.jl FILE")
main(ARGS[1])
