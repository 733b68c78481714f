# Arrays and streams of CUDA.jl.

module LowbitCUDAExt

using Lowbit
isdefined(Base, :get_extension) ? (using CUDA) : (using ..CUDA)

const LOCK = ReentrantLock()
const CONTEXTS = Dict{Int,Lowbit.Context}()

Lowbit.Context(device::CUDA.CuDevice) = Lowbit.Context(CUDA.deviceid(device))

function Lowbit.default_context(array::CUDA.CuArray)
    device = CUDA.device(array)
    return lock(LOCK) do
        id = CUDA.deviceid(device)
        if !haskey(CONTEXTS, id) || !isopen(CONTEXTS[id])
            CONTEXTS[id] = Lowbit.Context(device)
        end
        CONTEXTS[id]
    end
end

# Taking an array's pointer makes this task's stream the owner of its memory, so the two belong
# together: Lowbit asks for both in one task, within one call.
Lowbit.default_stream(::CUDA.CuArray) = Ptr{Cvoid}(CUDA.stream().handle)

end
