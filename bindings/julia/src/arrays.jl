# Arrays: element types and memory.

"""
    BF16(bits::AbstractArray{UInt16})
    BF16(values::AbstractArray{<:Real})

An array of bfloat16 numbers, for parameters and gradients. It is read as `Float32`; what is
assigned is rounded to nearest even. `bits` is shared, not copied.

# Example

```jldoctest
julia> array = Lowbit.BF16([1, 1 + 2^-8, 1 + 3 * 2^-8]);

julia> join(array, ", ")
"1.0, 1.0, 1.015625"

julia> array.bits[1]
0x3f80
```
"""
struct BF16{N,A<:AbstractArray{UInt16,N}} <: AbstractArray{Float32,N}
    bits::A
    BF16(bits::AbstractArray{UInt16,N}) where {N} = new{N,typeof(bits)}(bits)
end

BF16(values::AbstractArray{<:Real}) = copyto!(BF16(Array{UInt16}(undef, size(values))), values)

Base.size(array::BF16) = size(array.bits)
Base.IndexStyle(::Type{BF16{N,A}}) where {N,A} = IndexStyle(A)

Base.@propagate_inbounds Base.getindex(array::BF16, i::Int...) =
    reinterpret(Float32, UInt32(array.bits[i...]) << 16)

Base.@propagate_inbounds function Base.setindex!(array::BF16, value, i::Int...)
    word = reinterpret(UInt32, Float32(value))
    nan = word & 0x7fff_ffff > 0x7f80_0000
    rounded = nan ? word | 0x0040_0000 : word + 0x7fff + (word >> 16 & 1)
    array.bits[i...] = (rounded >> 16) % UInt16
    return array
end

"The library's name of an element type, or 0. A package with a bfloat16 type may add a method."
dtype(::Type) = Int32(0)
dtype(::Type{Float32}) = LOWBIT_DTYPE_F32
dtype(::Type{Float16}) = LOWBIT_DTYPE_F16
dtype(::Type{<:BF16}) = LOWBIT_DTYPE_BF16
dtype(array::AbstractArray) = dtype(eltype(array))
dtype(::BF16) = LOWBIT_DTYPE_BF16

@static if isdefined(Core, :BFloat16)
    dtype(::Type{Core.BFloat16}) = LOWBIT_DTYPE_BF16
end

"The other way: how a buffer of the library is seen in Julia."
const TYPES = Dict{Int32,Type}(
    LOWBIT_DTYPE_F32 => Float32,
    LOWBIT_DTYPE_BF16 => BF16,
    LOWBIT_DTYPE_F16 => Float16,
    LOWBIT_DTYPE_U8 => UInt8,
    LOWBIT_DTYPE_I32 => Int32,
    LOWBIT_DTYPE_I64 => Int64,
    LOWBIT_DTYPE_U16 => UInt16,
    LOWBIT_DTYPE_I8 => Int8,
)

"Whether the elements lie in memory one after the other, in Julia's order."
isdense(::AbstractArray) = false
isdense(::DenseArray) = true
isdense(array::BF16) = isdense(array.bits)
function isdense(array::StridedArray)
    next = 1
    for (extent, stride) in zip(size(array), strides(array))
        extent > 1 && stride != next && return false
        next *= extent
    end
    return true
end

"The address of an array's elements, on whichever device they are; the array must be kept alive."
address(array::AbstractArray) = Ptr{Cvoid}(reinterpret(UInt, pointer(array)))
address(array::BF16) = address(array.bits)

"Whether the elements are in the host's memory: arrays of devices have pointers of their own types."
on_host(array::AbstractArray) = pointer(array) isa Ptr
on_host(array::BF16) = on_host(array.bits)

"The memory of an array, which must be kept alive."
buffer(array::AbstractArray) =
    lowbit_buffer_t(address(array), length(array) * sizeof(eltype(array)))
buffer(array::BF16) = buffer(array.bits)

"The array whose type says where the elements are."
storage(array::AbstractArray) = array
storage(array::BF16) = array.bits

"`zeros(type, size)` in the memory that `array` is in."
zeros_like(array::AbstractArray) =
    (type, size) -> fill!(similar(storage(array), type, size), zero(type))

"""
    default_stream(array)

The stream, as a `Ptr{Cvoid}`, in whose order work on `array` is done unless another is given. The
package of a device's arrays adds a method; for CUDA.jl's it is the task's `CUDA.stream()`.
"""
default_stream(::AbstractArray) = C_NULL
default_stream(array::BF16) = default_stream(array.bits)
