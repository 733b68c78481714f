# The package extensions in ext/. Julia loads them from 1.9 on; before that, they are loaded here, with
# the package that they extend as a name in this module.

@static if isdefined(Base, :get_extension)
    loaded_extension(name) = Base.get_extension(@__MODULE__, name)
else
    const EXTENSIONS = Dict(
        "CUDA" => (Base.UUID("052768ef-5323-5732-b1bb-66c8b64840ba"), "LowbitCUDAExt"),
        "Optimisers" => (Base.UUID("3bd65402-5787-11e9-1adc-39752487f4e2"), "LowbitOptimisersExt"),
    )

    loaded_extension(name) =
        isdefined(@__MODULE__, name) ? getfield(@__MODULE__, name) : nothing

    "To be called when `package` has been loaded."
    function load_extension(package::Base.PkgId)
        haskey(EXTENSIONS, package.name) || return nothing
        uuid, extension = EXTENSIONS[package.name]
        package.uuid == uuid && loaded_extension(Symbol(extension)) === nothing || return nothing
        extended = Base.root_module(package)
        Core.eval(@__MODULE__, :(const $(Symbol(package.name)) = $extended))
        Base.include(@__MODULE__, joinpath(dirname(@__DIR__), "ext", "$extension.jl"))
        return nothing
    end

    function __init__()
        # Not while another package is compiled: this module is then closed.
        ccall(:jl_generating_output, Cint, ()) == 1 && return nothing
        foreach(load_extension, collect(keys(Base.loaded_modules)))
        push!(Base.package_callbacks, load_extension)
        return nothing
    end
end
