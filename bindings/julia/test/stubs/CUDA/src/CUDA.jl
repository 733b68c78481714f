# What of CUDA.jl Lowbit meets: arrays whose pointers are no `Ptr`, devices, and the task's stream.
# Memory is the host's, as that of the mock driver is.

module CUDA

export CuArray, CuPtr

primitive type CuPtr{T} 64 end

struct CuDevice
    handle::Int32
end
deviceid(device::CuDevice) = Int(device.handle)

struct CuStream
    handle::Ptr{Cvoid}
end

const LAST = Ref(UInt(0))

"Each task has its own."
stream() = get!(() -> CuStream(Ptr{Cvoid}(LAST[] += 0x10)), task_local_storage(), :stream)

struct CuArray{T,N} <: DenseArray{T,N}
    memory::Array{T,N}
end
CuArray{T,N}(::UndefInitializer, size::Dims{N}) where {T,N} = CuArray(Array{T,N}(undef, size))

Base.size(array::CuArray) = size(array.memory)
Base.similar(array::CuArray, ::Type{T}, size::Dims{N}) where {T,N} = CuArray{T,N}(undef, size)
Base.copy(array::CuArray) = CuArray(copy(array.memory))
Base.fill!(array::CuArray, value) = (fill!(array.memory, value); array)
Base.pointer(array::CuArray{T}) where {T} =
    reinterpret(CuPtr{T}, UInt(pointer(array.memory)))
Base.convert(::Type{<:Ptr}, ::CuPtr) = throw(ArgumentError("a GPU's pointer is none of the CPU"))
Base.getindex(::CuArray, ::Int...) = error("scalar indexing of a GPU's array")
Base.setindex!(::CuArray, value, ::Int...) = error("scalar indexing of a GPU's array")

# Broadcasting and copying, which kernels do in CUDA.jl.
struct Style{N} <: Broadcast.AbstractArrayStyle{N} end
Style{N}(::Val{M}) where {N,M} = Style{M}()
Style(::Val{N}) where {N} = Style{N}()
Broadcast.BroadcastStyle(::Type{<:CuArray{T,N}}) where {T,N} = Style{N}()
Base.similar(::Broadcast.Broadcasted{Style{N}}, ::Type{T}, axes) where {T,N} =
    CuArray{T,N}(undef, map(length, axes))
on_host(x::CuArray) = x.memory
on_host(x::Broadcast.Broadcasted) = Broadcast.broadcasted(x.f, map(on_host, x.args)...)
on_host(x) = x
Base.copyto!(to::CuArray, from::Broadcast.Broadcasted{<:Style}) =
    (copyto!(to.memory, Broadcast.materialize(on_host(from))); to)
Base.copyto!(to::CuArray, from::CuArray) = (copyto!(to.memory, from.memory); to)
Base.copyto!(to::Array, from::CuArray) = copyto!(to, from.memory)
Base.Array(array::CuArray) = copy(array.memory)

zeros(type, size) = CuArray(Base.zeros(type, size))

device() = CuDevice(0)
device(::CuArray) = CuDevice(0)
functional() = true

end
