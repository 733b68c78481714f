"The fenced blocks of a text whose language is `language`."
blocks(text, language) =
    [m.captures[1] for m in eachmatch(Regex("^```$language\\n(.*?)^```\$", "ms"), text)]

"""
Runs the examples of the README one after the other, in a module that is returned, and says how many: those
that use the package `needs`, or those that use Lowbit alone.
"""
function run_readme(needs = nothing)
    into = Module(:README)
    count = 0
    for block in blocks(read(joinpath(@__DIR__, "..", "README.md"), String), "julia")
        other = match(r"^using Lowbit, (\w+)"m, block)
        (other === nothing ? nothing : other.captures[1]) == needs || continue
        include_string(into, block)
        count += 1
    end
    println(count, " examples of the README", needs === nothing ? "" : " with $needs")
    return into, count
end
